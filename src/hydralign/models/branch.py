"""A branch: a backbone, whole or cut, with the token head that sits on it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from hydralign.errors import ModelError
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.backbones.causal import CausalBackbone, allowed_gap
from hydralign.models.backbones.slicing import ARCHITECTURE_ERRORS, describe_error
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels.logprobs import token_logprobs
from hydralign.models.outputs import require_finite_outputs
from hydralign.types import TokenBatch

OTHER_ARCHITECTURES = (
    "Name a model of an architecture that can be read so, such as gpt2, llama, mistral, qwen2, qwen3, gemma2 or phi3; "
    "of a model for text and images, its text model alone."
)
"""The way out where an architecture is refused."""


class Branch:
    """Log-probabilities of responses, and of texts packed in rows, by one backbone and its token head."""

    def __init__(
        self, backbone: CausalBackbone, *, absent_ids: Sequence[int] = (), stop_ids: tuple[int, ...] = ()
    ) -> None:
        """Absent tokens have probability 0; `stop_ids` are masked below the minimum length of a batch."""
        self.backbone, self.stop_ids = backbone, stop_ids
        self.head = TokenHead(backbone.model, absent_ids=absent_ids)

    def with_stop_ids(self, stop_ids: tuple[int, ...]) -> Branch:
        """The same branch, which masks other stop tokens."""
        other = copy.copy(self)
        other.stop_ids = stop_ids
        return other

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.head.vocabulary

    def read_tokens(
        self, hidden_ND: Tensor, batch: TokenBatch, *, entropy: bool = True, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the real response tokens, row by row, from the states that predict them."""
        row_N, position_N = batch.response_index
        with self.backbone.autocast():
            return token_logprobs(
                hidden_ND,
                batch.response_BR[row_N, position_N],
                position_N < batch.min_new_tokens,
                head=self.head,
                temperature=batch.temperature,
                stop_ids=self.stop_ids if batch.min_new_tokens else (),
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """logprobs_BR alone, by the same path as a policy's."""
        return batch.scatter(self.read_tokens(self.backbone.hidden(batch), batch, entropy=False)[0])

    def packed_logprobs(self, tokens_BT: Tensor, positions_BT: Tensor | None, learned_BT: Tensor) -> Tensor:
        """logprobs_N, in nats, of the tokens that are True in `learned_BT`, row by row; none in the first column.

        Several texts may share a row; `positions_BT` then begin anew with each.
        """
        learned_BT = learned_BT[:, 1:]  # the state at t predicts the token at t + 1
        with self.backbone.autocast():
            hidden_ND = self.backbone.packed_states(tokens_BT, positions_BT)[:, :-1][learned_BT]
            logprobs_N, _ = token_logprobs(
                hidden_ND,
                tokens_BT[:, 1:][learned_BT],
                torch.zeros(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device),
                head=self.head,
                temperature=1.0,
                stop_ids=(),
                entropy=False,
            )
        return logprobs_N


def check_readout(branch: Branch) -> None:
    """Raise ModelError unless body + head reproduce the model's own logits on a short input."""
    backbone = branch.backbone
    model = backbone.model
    ids_BT = torch.arange(2 * 5, device=backbone.device).view(2, 5) % branch.vocabulary
    try:
        with torch.no_grad(), backbone.autocast():
            whole = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits.float()
            states_BTD = backbone.packed_states(ids_BT)
    except ARCHITECTURE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{type(model).__name__} cannot be read as a body with a head ({describe_error(error)}): values and "
            f"log-probabilities start from its final states. {OTHER_ARCHITECTURES}"
        ) from error
    width = model.config.get_text_config().hidden_size
    if states_BTD.shape[-1] != width:
        raise ModelError(
            f"{type(model).__name__}: its final states are {states_BTD.shape[-1]} wide, its layers {width}: "
            "a value head of one width cannot read both. Use a model whose embeddings are as wide as its layers, "
            f"as in most. {OTHER_ARCHITECTURES}"
        )
    with torch.no_grad(), backbone.autocast():
        ours = branch.head.all_logits(states_BTD)
    gap, scale = (whole - ours).abs().max().item(), whole.abs().max().item()
    require_finite_outputs(scale, model)
    if not gap <= allowed_gap(backbone.precision, scale):
        raise ModelError(
            f"{type(model).__name__}: logits from its body and its head differ from its own by {gap:.2g}: "
            "this architecture changes them in a way that is not known here, and every log-probability would be "
            f"wrong. An encoder such as BERT reads both ways and cannot write. {OTHER_ARCHITECTURES}"
        )
