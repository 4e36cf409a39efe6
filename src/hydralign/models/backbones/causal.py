"""A transformers causal model, or its top layers, as a backbone: final states at the positions that predict a response.

A row is laid out as prompt, response, padding, without an attention mask: a causal model's real positions never look
right, so the mask would only cost time, and positions count from 0 as in pre-training.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.models.backbones.rope import explain_rope_limit, rope_limit
from hydralign.models.backbones.slicing import copy_trained, layers_of, replace_input, slice_layers
from hydralign.models.kernels import response_only
from hydralign.models.kernels.tied_embedding import look_up
from hydralign.types import TokenBatch


class CausalBackbone:
    """How one causal model, or the layers above a cut, reads token batches. Holds no trained state of its own."""

    def __init__(
        self, model: Any, *, precision: str = "fp32", body: Any = None, entry: nn.Module | None = None
    ) -> None:
        """`body` takes the place of the model's own; with `entry`, its first layer, it starts from trunk states."""
        self.model = model
        self.body = model.base_model if body is None else body
        self.entry = entry
        self.precision, self.rope_limit = precision, rope_limit(model)
        with self.autocast():
            parts = response_only.position_wise_parts(self.body)
            self.position_wise_parts = response_only.verify_parts(parts, self.body, partial(allowed_gap, precision))
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.get_input_embeddings().weight.device

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Input states_BTD, fp32. Passing states instead of ids also spares transformers' own search for pad ids."""
        return look_up(self.model.get_input_embeddings(), tokens_BT, head=self.model.get_output_embeddings())

    def hidden(self, batch: TokenBatch) -> Tensor:
        """hidden_ND after the final norm, at the position before each real response token, row by row."""
        row_N, position_N = batch.response_index
        column_N = batch.prompt_lengths_B.to(batch.device, non_blocking=True)[row_N] + position_N - 1
        with self.autocast(), response_only.only_at_positions(self.position_wise_parts, row_N, column_N):
            states_BTD = self.states(batch)
        return states_BTD[row_N, column_N]

    def states(self, batch: TokenBatch) -> Tensor:
        """states_BTD after the final norm, at every position of the batch laid out.

        Raises ModelError for rows that are too long to read the same in any batch.
        """
        columns = int(batch.lengths_B.max())
        if self.rope_limit is not None and columns > self.rope_limit:
            raise ModelError(
                f"A row has {columns} tokens, and {type(self.model).__name__} reads at most {self.rope_limit}"
                f"{explain_rope_limit(self.model)}. Shorten prompts or answers."
            )
        if self.entry is None:
            return self.body(inputs_embeds=self.embed(lay_out(batch)), use_cache=False).last_hidden_state
        assert isinstance(batch.trunk, CausalTrunkStates), "a branch reads trunk states"
        trunk_BTD = batch.trunk.states_BTD.float()
        with replace_input(self.entry, trunk_BTD):
            return self.body(inputs_embeds=trunk_BTD, use_cache=False).last_hidden_state

    def packed_states(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """states_BTD of rows in which several texts may stand side by side, each with positions that begin anew."""
        inputs = {} if positions_BT is None else {"position_ids": positions_BT}
        return self.body(inputs_embeds=self.embed(tokens_BT), use_cache=False, **inputs).last_hidden_state

    def top(self, first: int, *, own_weights: bool = False) -> CausalBackbone:
        """The layers from `first` on, which read trunk states; with `own_weights` what is trained in them is copied."""
        body = slice_layers(self.body, first, len(layers_of(self.body)))
        return self._above_cut(copy_trained(body) if own_weights else body)

    def with_own_weights(self) -> CausalBackbone:
        """The same layers above a cut, with copies of what is trained in them."""
        return self._above_cut(copy_trained(self.body))

    def _above_cut(self, body: Any) -> CausalBackbone:
        return CausalBackbone(self.model, precision=self.precision, body=body, entry=layers_of(body)[0])


@dataclass(frozen=True)
class CausalTrunkStates:
    """The trunk's states of a batch, each row laid out as prompt, response, padding."""

    states_BTD: Tensor
    lengths_B: Tensor
    """Real positions of each row, on the CPU."""

    def select(self, index_B: Tensor, device: torch.device) -> CausalTrunkStates:
        """Of these rows only, as wide as the longest of them, on this device. `index_B` lies on the CPU."""
        lengths_B = self.lengths_B[index_B]
        longest = int(lengths_B.max()) if len(index_B) else 0
        return CausalTrunkStates(self.states_BTD[index_B, :longest].to(device), lengths_B)

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return self.states_BTD.nbytes


class CausalTrunkCollector:
    """Puts the trunk states of a batch together out of those of a few rows at a time."""

    def __init__(self, rows: int) -> None:
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        self.states_BTD: Tensor | None = None

    def add(self, index_B: Tensor, part: CausalTrunkStates) -> None:
        """Place the states of the rows `index_B`. What is held is as wide as the longest row so far."""
        self.lengths_B[index_B] = part.lengths_B
        held_BTD, columns = self.states_BTD, int(part.lengths_B.max())
        if held_BTD is None or held_BTD.shape[1] < columns:
            self.states_BTD = part.states_BTD.new_zeros(len(self.lengths_B), columns, part.states_BTD.shape[2])
            if held_BTD is not None:
                self.states_BTD[:, : held_BTD.shape[1]] = held_BTD
        assert self.states_BTD is not None
        self.states_BTD[index_B, :columns] = part.states_BTD[:, :columns]

    def states(self) -> CausalTrunkStates:
        """The states of all rows."""
        assert self.states_BTD is not None
        return CausalTrunkStates(self.states_BTD, self.lengths_B)


def lay_out(batch: TokenBatch) -> Tensor:
    """tokens_BT: prompt, response and padding of each row, from column 0, as wide as the longest row."""
    columns = int(batch.lengths_B.max())
    prompt_BQ = batch.prompt_BQ[:, :columns]
    tokens_BT = prompt_BQ.new_zeros(len(batch), columns)
    tokens_BT[:, : prompt_BQ.shape[1]] = prompt_BQ
    row_N, position_N = batch.response_index
    column_N = batch.prompt_lengths_B.to(batch.device, non_blocking=True)[row_N] + position_N
    return tokens_BT.index_put((row_N, column_N), batch.response_BR[row_N, position_N])


def allowed_gap(precision: str, scale: float) -> float:
    """How far two ways to the same numbers, the largest of size `scale`, may lie apart by rounding."""
    return (1e-3 if precision == "fp32" else 3e-2) * max(1.0, scale)
