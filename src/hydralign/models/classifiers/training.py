"""A sequence classifier in training: a reward model (one output) or a text classifier (named labels).

It is read by `heads.score.outputs`, as everywhere, and exports a plain `AutoModelForSequenceClassification` folder.
The head is always trained in full and never adapted; with LoRA the adapters are merged into the exported weights.
The pad token is never EOS nor the unknown token, because transformers takes the rightmost token that is not padding
for a text's last: where no such token is named, `<pad>` is used, and added with an embedding row of its own if new.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydralign.config.model import Form, LoraForm
from hydralign.errors import ModelError
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.slicing import layers_of, named_architecture_errors, top_layers
from hydralign.models.bf16_speed import concrete_precision
from hydralign.models.classifiers.labels import label_names
from hydralign.models.classifiers.loading import longest_text
from hydralign.models.classifiers.starting import last_layer, load_start
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.adapters import ADAPTER
from hydralign.models.folders.from_scratch import PAD
from hydralign.models.folders.load_report import head_names
from hydralign.models.folders.loading import prepare_model
from hydralign.models.folders.saving import model_folder
from hydralign.models.forms.lora import place_adapters
from hydralign.models.heads.score import outputs
from hydralign.models.outputs import allowed_gap, require_finite_outputs
from hydralign.models.precision import convert_to_fp32, store_matrices_in_bf16
from hydralign.models.versions import LoraLayer

OTHER_CLASSIFIERS = (
    "Start from a language model such as gpt2, llama, mistral, qwen2 or qwen3, or from an encoder such as bert or "
    "roberta."
)
"""The way out where an architecture is refused."""


class SequenceClassifier:
    """A classifier with what is trained in it; `wrap_classifier` and `load_sequence_classifier` make one.

    `labels` names the outputs in their order, `max_tokens` is the longest text it reads, `pad_id` what it pads with.
    """

    def __init__(self, model: Any, tokenizer: Any, *, precision: str = "fp32", max_tokens: int | None = None) -> None:
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self.labels = tuple(label_names(model.config.id2label, type(model).__name__))
        self.pad_id = int(model.config.pad_token_id)
        readable = longest_text(model, tokenizer)
        if max_tokens is not None and max_tokens > readable:
            raise ModelError(
                f"max_tokens={max_tokens}, but {type(model).__name__} reads at most {readable} tokens"
                f"{explain_rope_limit(model) or ': it has no positions for more'}. Use at most {readable}."
            )
        self.max_tokens = max_tokens or readable
        self._last = last_layer(model)
        if precision == "bf16":
            self._last.register_forward_hook(_in_full_precision)

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self._last.weight.device

    def outputs(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """`logits_BC` of rows of token ids, fp32, with gradients; neither padding nor company changes a row's."""
        with self._autocast():
            return outputs(self.model, rows, self.pad_id).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer updates, by stable name; the head is always among them."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def frozen(self) -> list[Tensor]:
        """The parameters that nothing updates."""
        return [p for p in self.model.parameters() if not p.requires_grad]

    @torch.no_grad()
    def divide_outputs(self, temperature: float) -> None:
        """Divide all outputs by `temperature` for good, by dividing the last layer's weights and bias.

        Probabilities change, and no order does. Raises ModelError unless the temperature is positive and finite.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise ModelError(
                f"temperature={temperature} is not positive and finite: outputs divided by it would lose their order. "
                "Fit it on held-out texts with finite outputs."
            )
        for parameter in self._last.parameters():
            parameter.div_(temperature)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a plain classifier folder with its tokenizer, fp32 safetensors; training can go on afterwards."""
        with model_folder(folder) as partial:
            self.model.save_pretrained(partial, state_dict=_merged(self.model))
            self.tokenizer.save_pretrained(partial)

    def check_readout(self) -> None:
        """Raise ModelError unless the outputs are those of the model's own forward pass."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        row = [token for token in range(min(vocabulary, 8)) if token != self.pad_id][:5]
        name = type(self.model).__name__
        named = named_architecture_errors(
            f"{name} cannot be read as a classifier of texts",
            f"its outputs are found in another way than is known here. {OTHER_CLASSIFIERS}",
        )
        with torch.no_grad(), self._autocast(), named:
            ours_C = outputs(self.model, [row[:3], row], self.pad_id)[0].float()
            whole_C = self.model(input_ids=torch.tensor([row[:3]], device=self.device)).logits[0].float()
        gap, scale = (ours_C - whole_C).abs().max().item(), whole_C.abs().max().item()
        require_finite_outputs(scale, self.model)
        if not gap <= allowed_gap(self.precision, scale):
            raise ModelError(
                f"{name}: outputs read at a text's last token differ from its own by {gap:.2g}: this architecture is "
                "read in a way that is not known here, so a saved model would score otherwise than the trained one. "
                f"{OTHER_CLASSIFIERS}"
            )


def wrap_classifier(
    model: Any,
    tokenizer: Any,
    *,
    form: Form | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    freeze_layers: int = 0,
    max_tokens: int | None = None,
    seed: int = 0,
) -> SequenceClassifier:
    """A classifier in training around a model in memory, which it takes over; sets the tokenizer's pad token in place.

    `freeze_layers` fixes the embeddings and that many blocks from below (LoRA then adapts the others only, and of them
    the top ones if its form names a number);
    `max_tokens` None is the longest text that the model can read; `seed` seeds fresh adapters.
    Raises ModelError when freezing, adapters, length or architecture do not fit.
    """
    precision = concrete_precision(precision, model.device)
    _give_pad_token(model, tokenizer, pad_token)
    prepare_model(convert_to_fp32(model), tokenizer)
    model.requires_grad_(True)
    freeze_fixed(model)
    frozen = _frozen_blocks(model, form, freeze_layers)
    if precision == "bf16":
        for block in layers_of(model.base_model) if isinstance(form, LoraForm) else frozen:
            store_matrices_in_bf16(block)
    if isinstance(form, LoraForm):
        _adapt(model, form, frozen, seed)
    elif freeze_layers:
        for module in _embeddings_and(model, frozen):
            module.requires_grad_(False)
    classifier = SequenceClassifier(model, tokenizer, precision=precision, max_tokens=max_tokens)
    classifier.check_readout()
    return classifier


def load_sequence_classifier(
    path: str, *, labels: Sequence[str], device: str | torch.device = "cpu", seed: int = 0, **settings: Any
) -> SequenceClassifier:
    """`load_start` from a folder or hub id with these labels, then `wrap_classifier` with the other settings. Raises
    as they do.
    """
    model, tokenizer = load_start(path, labels, seed=seed)
    return wrap_classifier(model.to(device), tokenizer, seed=seed, **settings)


def require_freezable(freeze_layers: int, layers: int, kind: str) -> None:
    """Raise ModelError unless a model has so many `layers` that `freeze_layers` can be frozen; `kind` names it."""
    if not 0 <= freeze_layers <= layers:
        raise ModelError(
            f"freeze_layers={freeze_layers}, but {kind} has {layers} blocks: there are no more to freeze. "
            f"Use at most {layers}; fewer leave some of the trunk to learn."
        )


def _frozen_blocks(model: Any, form: Form | None, freeze_layers: int) -> list[nn.Module]:
    """The blocks from below that keep their weights: so many, or all below the top ones that the form adapts."""
    top = form.unfrozen_layers if isinstance(form, LoraForm) else None
    if not freeze_layers and top is None:
        return []
    kind, blocks = type(model).__name__, list(layers_of(model.base_model))
    require_freezable(freeze_layers, len(blocks), kind)
    below = 0 if top is None else top_layers(top, len(blocks), kind, all_allowed=True).start
    return blocks[: max(freeze_layers, below)]


def _embeddings_and(model: Any, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The embeddings of all kinds, and these blocks."""
    named = model.base_model.named_modules()
    return [m for name, m in named if isinstance(m, nn.Embedding) or "embed" in name or m in blocks]


def _give_pad_token(model: Any, tokenizer: Any, pad_token: str | None) -> None:
    """Set a pad token that ends no text; a new one gets the mean embedding, which masks keep out of every output."""
    confused = {None, tokenizer.eos_token, tokenizer.unk_token}
    pad = next((token for token in (pad_token, tokenizer.pad_token) if token not in confused), PAD)
    tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.padding_side = "right"
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            weight_VD = model.get_input_embeddings().weight
            weight_VD[rows:] = weight_VD[:rows].mean(dim=0)


def _adapt(model: Any, form: LoraForm, frozen: Sequence[nn.Module], seed: int) -> None:
    """Put fresh adapters, which change nothing yet, into the trunk above the frozen blocks; fix the rest but the head.

    PEFT's wrapper is not kept: there is no adapter folder to write, and names stay those of the plain model.
    """
    if form.adapter:
        raise ModelError(
            f"model.form.adapter={form.adapter!r}: it was trained to write, so for scoring it belongs to the start, "
            "not to what is trained. Name it under model.path instead; it is merged into its base there."
        )
    head = head_names(model)
    heads = {name.rpartition(".")[0] for name in head}
    # With blocks that keep their weights, or only top layers to adapt, the embeddings below them keep theirs too.
    closed = _embeddings_and(model, frozen) if frozen or form.unfrozen_layers else []
    below = {module for part in closed for module in part.modules()}
    closed_names = [name for name, module in model.named_modules() if name in heads or module in below]
    where = f"above {len(frozen)} frozen blocks of {type(model).__name__}"
    advice = "Freeze fewer blocks, or name"
    place_adapters(model, form, where, seed=seed, advice=advice, exclude_modules=closed_names)
    for name, parameter in model.named_parameters():
        if name in head:
            parameter.requires_grad_(True)


@torch.no_grad()
def _merged(model: Any) -> dict[str, Tensor]:
    """The model's weights under their plain names, fp32 on the CPU, each adapter added to its layer's weight."""
    adapted = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    merged = {}
    for name, tensor in model.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" not in name:
            whole = tensor.float() if tensor.is_floating_point() else tensor
            merged[plain] = (whole + adapted[plain].get_delta_weight(ADAPTER) if plain in adapted else whole).cpu()
    return merged


def _in_full_precision(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """The outputs again, without autocast: rounded to bf16, scores of equally long answers would often tie."""
    with torch.autocast(layer.weight.device.type, enabled=False):
        return functional.linear(inputs[0].float(), layer.weight, layer.bias)
