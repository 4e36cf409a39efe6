"""What a backbone can do, whatever its architecture: heads, forms and policies know this face only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hydralign.models.heads.token import TokenHead
from hydralign.types import TokenBatch, TrunkStates, TrunkUse


class Decoding(Protocol):
    """A batch in the middle of being sampled."""

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, hidden_BD) of the next position: raw fp32 logits, and the states that they come from."""

    def append(self, tokens_B: Tensor, real: int) -> None:
        """Read one sampled token per row; all but `real` of them belong to rows that had ended before."""

    def finish(self, tokens_B: Tensor, real: int) -> None:
        """Read the last tokens of the answers, as far as somebody will ask for their states."""

    def keep(self, index_B: Tensor) -> None:
        """Go on with these rows only; `index_B` rises."""

    def trunk_states(self, lengths_B: Tensor) -> TrunkStates | None:
        """The trunk's states of all rows of the beginning, with so many real tokens each; None without a trunk."""


class TrunkCollector(Protocol):
    """Puts the trunk states of a batch together out of those of a few rows at a time."""

    def add(self, index_B: Tensor, part: TrunkStates) -> None:
        """Place the states of the rows `index_B`."""

    def states(self) -> TrunkStates:
        """The states of all rows."""


class Trunk(Protocol):
    """The frozen part below a cut, and a count of every position that crossed it."""

    use: TrunkUse

    def states(self, batch: TokenBatch) -> TrunkStates:
        """The states of a batch that brings none."""

    def collector(self, rows: int) -> TrunkCollector:
        """Puts the states of so many rows together."""


class Backbone(Protocol):
    """A network, whole or from a cut upwards, up to the states that its heads read."""

    model: Any
    """The whole transformers model."""
    body: Any
    """The part of it that is run."""
    precision: str
    state_scale: float
    """What the model multiplies its final states by before its output head reads them."""
    takes_positions: bool
    """Whether it can be told positions, without which texts cannot share a row."""
    alternatives: str
    """Architectures that can be read so, as a list in words: what to use where another one is refused."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""

    def hidden(self, batch: TokenBatch) -> Tensor:
        """hidden_ND after the final norm, at the position before each real response token, row by row."""

    def own_logits(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BTV that the model itself gives, states_BTD that are read here) for rows of unequal lengths.

        A trial of whether both are the same, of a few tokens.
        """

    def check_cut(self, top: int) -> int:
        """The number of the first of the `top` layers that can be cut off. Raises ModelError unless both parts, one
        after the other, give the whole model's states.
        """

    def packed_states(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """states_BTD of rows in which several texts may stand side by side, each with positions that begin anew."""

    def trunk(self, layers: int, *, dtype: torch.dtype, offload: bool) -> Trunk:
        """The lowest `layers` layers, whose states are stored in this dtype, on the CPU with `offload`."""

    def top(self, first: int) -> Backbone:
        """The layers from `first` on, which read trunk states."""

    def with_own_weights(self) -> Backbone:
        """The same layers above a cut, with copies of what is trained in them."""

    def start(
        self, head: TokenHead, prompt_ids: Sequence[Sequence[int]], new_tokens: int, *, trunk: Any = None
    ) -> Decoding:
        """Begin sampling up to `new_tokens` tokens after each prompt; a `trunk`'s states are kept on the way."""
