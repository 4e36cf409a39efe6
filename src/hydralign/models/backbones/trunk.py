"""The frozen bottom of a causal model: embeddings and lowest layers, whose states all heads start from.

A row is laid out as prompt, response, padding, from column 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hydralign.models.backbones.slicing import capture_output, layers_of, slice_layers
from hydralign.types import TokenBatch, TrunkStates, TrunkUse

if TYPE_CHECKING:
    from hydralign.models.backbones.causal import CausalBackbone


def lay_out(batch: TokenBatch) -> Tensor:
    """tokens_BT: prompt, response and padding of each row, from column 0, as wide as the longest row."""
    columns = int(batch.lengths_B.max())
    prompt_BQ = batch.prompt_BQ[:, :columns]
    tokens_BT = prompt_BQ.new_zeros(len(batch), columns)
    tokens_BT[:, : prompt_BQ.shape[1]] = prompt_BQ
    row_N, position_N = batch.response_index
    column_N = response_columns(batch)
    return tokens_BT.index_put((row_N, column_N), batch.response_BR[row_N, position_N])


def response_columns(batch: TokenBatch) -> Tensor:
    """column_N of each real response token where a batch is laid out."""
    row_N, position_N = batch.response_index
    return batch.prompt_lengths_B.to(batch.device, non_blocking=True)[row_N] + position_N


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


class CausalTrunkCollector:
    """Puts the trunk states of a batch together out of those of a few rows at a time."""

    def __init__(self, rows: int) -> None:
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        self.states_BTD: Tensor | None = None

    def add(self, index_B: Tensor, part: TrunkStates) -> None:
        """Place the states of the rows `index_B`. What is held is as wide as the longest row so far."""
        assert isinstance(part, CausalTrunkStates), "states of another kind of backbone"
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


class CausalTrunk:
    """The lowest `layers` layers of a model, and a count of every position that crossed them."""

    def __init__(
        self, backbone: CausalBackbone, layers: int, *, dtype: torch.dtype = torch.float32, offload: bool = False
    ) -> None:
        """`backbone` is the whole model's. Kept states have this dtype; with `offload` they lie on the CPU."""
        self._backbone, self.dtype, self.offload = backbone, dtype, offload
        self.body = slice_layers(backbone.body, 0, layers)
        self.last = layers_of(self.body)[-1]
        self.use = TrunkUse()

    def count(self, real: int, pad: int) -> None:
        """Add positions that went through."""
        self.use = TrunkUse(self.use.real + real, self.use.pad + pad)

    def stored(self, states_BTD: Tensor) -> Tensor:
        """States in the dtype and place in which a rollout carries them."""
        return states_BTD.to(torch.device("cpu") if self.offload else states_BTD.device, self.dtype)

    def collector(self, rows: int) -> CausalTrunkCollector:
        """Puts the states of so many rows together."""
        return CausalTrunkCollector(rows)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> CausalTrunkStates:
        """The states of a batch that brings none."""
        tokens_BT = lay_out(batch)
        with self._backbone.autocast(), capture_output(self.last) as seen:
            self.body(inputs_embeds=self._backbone.embed(tokens_BT), use_cache=False)
        real = int(batch.lengths_B.sum())
        self.count(real, tokens_BT.numel() - real)
        return CausalTrunkStates(self.stored(seen[0]), batch.lengths_B)
