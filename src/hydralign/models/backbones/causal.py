"""A transformers causal model, or its top layers, seen as body and output head: evaluating rows.

Rows are read right-padded without an attention mask: a causal model's real positions never look right, so
the mask would only cost time, and positions count from 0 as in pre-training.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.backbones.rope import explain_rope_limit, rope_limit
from hydralign.models.backbones.slicing import ARCHITECTURE_ERRORS, describe_error, replace_input
from hydralign.models.heads.token import OutputHead, absent_ids
from hydralign.models.heads.value import ValueHead
from hydralign.models.kernels import response_only as narrow
from hydralign.models.kernels.logprobs import token_logprobs
from hydralign.models.kernels.tied_embedding import look_up
from hydralign.models.outputs import require_finite_outputs
from hydralign.types import PolicyOutput, TokenBatch

OTHER_ARCHITECTURES = (
    "Name a model of an architecture that can be read so, such as gpt2, llama, mistral, qwen2, qwen3, gemma2 or phi3; "
    "of a model for text and images, its text model alone."
)
"""The way out where an architecture is refused."""


class CausalModel:
    """Body, head and precision of one causal language model. Holds no trained state of its own."""

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        precision: str = "fp32",
        body: Any = None,
        entry: nn.Module | None = None,
    ) -> None:
        """`body` takes the place of the model's own; with `entry`, its first layer, it starts from trunk states.

        Tokens that `tokenizer` lacks have probability 0; without one, every row of the output head is a token.
        """
        self.model = model
        self.body = model.base_model if body is None else body
        self.entry = entry
        absent = () if tokenizer is None else absent_ids(tokenizer, OutputHead(model).vocabulary)
        self.head = OutputHead(model, absent_ids=absent)
        self.precision, self.rope_limit = precision, rope_limit(model)
        with self.autocast():
            self.last_position_wise = narrow.tried(
                narrow.last_position_wise(self.body), self.body, partial(allowed_gap, precision)
            )
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.head.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head.linear.weight.device

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Input states_BTD, fp32. Passing states instead of ids also spares transformers' own search for pad ids."""
        return look_up(self.model.get_input_embeddings(), tokens_BT, head=self.head.linear)

    def states(self, rows: TokenBatch) -> Tensor:
        """states_BTD after the final norm, at every position of the rows.

        Raises ModelError for rows that are too long to read the same in any batch.
        """
        columns = rows.tokens_BT.shape[1]
        if self.rope_limit is not None and columns > self.rope_limit:
            raise ModelError(
                f"A row has {columns} tokens, and {type(self.model).__name__} reads at most {self.rope_limit}"
                f"{explain_rope_limit(self.model)}. Shorten prompts or answers."
            )
        if self.entry is None:
            return self.body(inputs_embeds=self.embed(rows.tokens_BT), use_cache=False).last_hidden_state
        trunk_BTD = rows.trunk_BTD
        assert trunk_BTD is not None, "a branch reads trunk states"
        trunk_BTD = trunk_BTD.float()
        with replace_input(self.entry, trunk_BTD):
            return self.body(inputs_embeds=trunk_BTD, use_cache=False).last_hidden_state

    def final_states(self, rows: TokenBatch) -> Tensor:
        """hidden_ND after the final norm, at the position before each real response token, row by row."""
        row_N, _, column_N = rows.response_index
        with self.autocast(), narrow.only_at_positions(self.last_position_wise, row_N, column_N - 1):
            states_BTD = self.states(rows)
        return states_BTD[row_N, column_N - 1]

    def logprobs(
        self,
        hidden_ND: Tensor,
        rows: TokenBatch,
        stop_ids: tuple[int, ...],
        *,
        entropy: bool = True,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the real response tokens of `rows`, row by row."""
        row_N, position_N, column_N = rows.response_index
        with self.autocast():
            return token_logprobs(
                hidden_ND,
                rows.tokens_BT[row_N, column_N],
                position_N < rows.min_new_tokens,
                head=self.head,
                temperature=rows.temperature,
                stop_ids=stop_ids if rows.min_new_tokens else (),
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )

    def evaluate(
        self,
        rows: TokenBatch,
        value_head: ValueHead,
        stop_ids: tuple[int, ...],
        *,
        entropy_gradient: bool = False,
        values: CausalModel | None = None,
    ) -> PolicyOutput:
        """Log-probabilities, values and entropies of the responses; one pass through body and head.

        Values are read from the same states, or from those of another model, `values`.
        """
        hidden_ND = self.final_states(rows)
        logprobs_N, entropy_N = self.logprobs(hidden_ND, rows, stop_ids, entropy_gradient=entropy_gradient)
        values_N = value_head(hidden_ND if values is None else values.final_states(rows))
        return PolicyOutput(*(spread(x_N, rows) for x_N in (logprobs_N, values_N, entropy_N)))

    def read_values(self, rows: TokenBatch, value_head: ValueHead) -> Tensor:
        """values_BR alone, by the same path as `evaluate`."""
        return spread(value_head(self.final_states(rows)), rows)

    def reference(self, rows: TokenBatch, stop_ids: tuple[int, ...]) -> Tensor:
        """logprobs_BR alone, by the same path as `evaluate`."""
        logprobs_N, _ = self.logprobs(self.final_states(rows), rows, stop_ids, entropy=False)
        return spread(logprobs_N, rows)

    def check_readout(self) -> None:
        """Raise ModelError unless body + head reproduce the model's own logits on a short input."""
        ids_BT = torch.arange(2 * 5, device=self.device).view(2, 5) % self.vocabulary
        try:
            with torch.no_grad(), self.autocast():
                whole = self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits.float()
                states_BTD = self.body(inputs_embeds=self.embed(ids_BT), use_cache=False).last_hidden_state
        except ARCHITECTURE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{type(self.model).__name__} cannot be read as a body with a head ({describe_error(error)}): values "
                f"and log-probabilities start from its final states. {OTHER_ARCHITECTURES}"
            ) from error
        width = self.model.config.get_text_config().hidden_size
        if states_BTD.shape[-1] != width:
            raise ModelError(
                f"{type(self.model).__name__}: its final states are {states_BTD.shape[-1]} wide, its layers {width}: "
                "a value head of one width cannot read both. Use a model whose embeddings are as wide as its layers, "
                f"as in most. {OTHER_ARCHITECTURES}"
            )
        with torch.no_grad(), self.autocast():
            ours = self.head.all_logits(states_BTD)
        gap, scale = (whole - ours).abs().max().item(), whole.abs().max().item()
        require_finite_outputs(scale, self.model)
        if not gap <= allowed_gap(self.precision, scale):
            raise ModelError(
                f"{type(self.model).__name__}: logits from its body and its head differ from its own by {gap:.2g}: "
                "this architecture changes them in a way that is not known here, and every log-probability would be "
                f"wrong. An encoder such as BERT reads both ways and cannot write. {OTHER_ARCHITECTURES}"
            )


def allowed_gap(precision: str, scale: float) -> float:
    """How far two ways to the same numbers, the largest of size `scale`, may lie apart by rounding."""
    return (1e-3 if precision == "fp32" else 3e-2) * max(1.0, scale)


def spread(x_N: Tensor, rows: TokenBatch) -> Tensor:
    """Numbers of real response tokens, row by row, back in their columns; zero elsewhere."""
    row_N, position_N, _ = rows.response_index
    out_BR = torch.zeros(len(rows), rows.width, dtype=x_N.dtype, device=x_N.device)
    return out_BR.index_put((row_N, position_N), x_N)
