"""Whether an architecture can be read as a body with a head, and sampled with a key-value cache; tried out at load."""

from __future__ import annotations

import torch

from hydralign.errors import ModelError
from hydralign.models.backbones.backbone import Backbone
from hydralign.models.backbones.slicing import named_architecture_errors
from hydralign.models.branch import Branch
from hydralign.models.outputs import allowed_gap, require_finite_outputs
from hydralign.types import TokenBatch


def other_architectures(backbone: Backbone) -> str:
    """The way out where an architecture is refused, in words."""
    return (
        f"Name a model of an architecture that can be read so, such as {backbone.alternatives}; of a model for text "
        "and images, its text model alone."
    )


def check_readout(branch: Branch) -> None:
    """Raise ModelError unless body + head reproduce the model's own logits on a short input."""
    backbone = branch.backbone
    model, name = backbone.model, type(backbone.model).__name__
    way_out = other_architectures(backbone)
    ids_BT = torch.arange(2 * 5, device=backbone.device).view(2, 5) % branch.vocabulary
    named = named_architecture_errors(
        f"{name} cannot be read as a body with a head",
        f"values and log-probabilities start from its final states. {way_out}",
    )
    with named, torch.no_grad(), backbone.autocast():
        whole, states_BTD = backbone.own_logits(ids_BT)
    width = model.config.get_text_config().hidden_size
    if states_BTD.shape[-1] != width:
        raise ModelError(
            f"{name}: its final states are {states_BTD.shape[-1]} wide, its layers {width}: "
            "a value head of one width cannot read both. Use a model whose embeddings are as wide as its layers, "
            f"as in most. {way_out}"
        )
    with torch.no_grad(), backbone.autocast():
        ours = branch.head.all_logits(states_BTD)
    gap, scale = (whole - ours).abs().max().item(), whole.abs().max().item()
    require_finite_outputs(scale, model)
    if not gap <= allowed_gap(backbone.precision, scale):
        encoder = (
            "" if model.config.is_encoder_decoder else "An encoder such as BERT reads both ways and cannot write. "
        )
        raise ModelError(
            f"{name}: logits from its body and its head differ from its own by {gap:.2g}: this architecture changes "
            f"them in a way that is not known here, and every log-probability would be wrong. {encoder}{way_out}"
        )


@torch.no_grad()
def check_decoding(branch: Branch) -> None:
    """Raise ModelError unless rows of unequal lengths, decoded with a cache, meet the states of a plain pass.

    That is a prefill of a few tokens, a step, and a second one after a row has left. It belongs before sampling alone:
    nothing is decoded in supervised training. Best in fp32, where a router of experts is not near a tie by rounding.
    """
    backbone = branch.backbone
    name = type(backbone.model).__name__
    cause = "most likely its layers keep more from token to token than keys and values"
    way_out = (
        f"Sample from an architecture whose layers are all attention, such as {backbone.alternatives}; sft can train "
        "this one."
    )
    with named_architecture_errors(
        f"{name} cannot be sampled with a key-value cache", f"{cause}, and no answer could be drawn. {way_out}"
    ):
        gap, scale = _decoding_gap(branch)
    require_finite_outputs(scale, backbone.model)
    if not gap <= allowed_gap(backbone.precision, scale):
        raise ModelError(
            f"{name}: its states when it is sampled with a key-value cache differ from those of a plain pass by "
            f"{gap:.2g}: {cause}, and answers would come from another distribution than the one that is trained. "
            f"{way_out}"
        )


def _decoding_gap(branch: Branch) -> tuple[float, float]:
    """Largest difference between decoded and plain states, and the largest plain state."""
    backbone = branch.backbone
    ids_BT = (torch.arange(3 * 6).view(3, 6) % branch.vocabulary).tolist()
    prompts = [ids[:length] for ids, length in zip(ids_BT, (3, 1, 2), strict=True)]
    answers = [ids[len(prompt) : len(prompt) + 3] for ids, prompt in zip(ids_BT, prompts, strict=True)]
    plain_B3D = backbone.hidden(TokenBatch.of(prompts, answers, device=backbone.device)).unflatten(0, (3, 3))
    answers_B3, here_B = torch.tensor(answers, device=backbone.device), torch.arange(3, device=backbone.device)
    decoding = backbone.start(branch.head, prompts, 3)
    gaps = [decoding.predict()[1] - plain_B3D[:, 0]]
    for step, stays in enumerate(([0, 1, 2], [0, 2])):
        decoding.keep(torch.tensor(stays, device=backbone.device))
        here_B = here_B[stays]
        decoding.append(answers_B3[here_B, step], len(stays))
        gaps.append(decoding.predict()[1] - plain_B3D[here_B, step + 1])
    return float(torch.cat(gaps).abs().max()), float(plain_B3D.abs().max())
