"""The seam between loops and models: what a policy can do, whatever its form.

A loop and a sampler see this face only; they never learn whether all weights are trained, adapters, or the
top layers of a shared trunk. Every log-probability is that of softmax(logits / temperature) with the stop
tokens masked below the row's minimum length, in every pass alike (`logprobs.apply_temperature_and_min_length`).
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor

from hydralign.models.backbones.trunk import Trunk
from hydralign.types import PolicyOutput, TokenBatch


class Decoding(Protocol):
    """A batch in the middle of being sampled."""

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, values_B) of the next position: raw fp32 logits, and the value before that token."""

    def append(self, tokens_B: Tensor, real: int) -> None:
        """Read one sampled token per row; all but `real` of them belong to rows that had ended before."""

    def finish(self, tokens_B: Tensor, real: int) -> None:
        """Read the last tokens, which nothing follows, as far as somebody will ask for their states."""

    def keep(self, index_B: Tensor) -> None:
        """Go on with these rows only; `index_B` rises."""

    def trunk_states(self) -> Tensor | None:
        """trunk_BTD of all rows of the beginning, right-padded; None where no trunk is shared."""


class Policy(Protocol):
    """A trained model with its value head and its frozen reference."""

    tokenizer: Any
    stop_ids: tuple[int, ...]
    precision: str
    context: int
    context_note: str
    """Why the context ends where it does, as a clause; empty where positions end there."""
    vocabulary: int | None
    """Rows of its embedding: it reads the ids below. None where that is unknown."""

    @property
    def samples_values(self) -> bool:
        """Whether the values that sampling tells are those of `evaluate`; else `read_values` must follow."""

    @property
    def trunk(self) -> Trunk | None:
        """What policy, value and reference share, frozen; None when they share nothing."""

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""

    def evaluate(self, rows: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities, values and entropies of the responses, with gradient where grad mode is on.

        Rows that bring trunk states spare the trunk. Gradients are made for a full `backward()`: `torch.autograd.grad`
        misses the look-up's part of a trained embedding that is tied to the head (`models/kernels/tied_embedding.py`).
        """

    def read_values(self, rows: TokenBatch) -> Tensor:
        """values_BR alone, those of `evaluate` to the bit, without the output head's work."""

    def reference(self, rows: TokenBatch) -> Tensor:
        """ref_logprobs_BR of the frozen reference, by the same path as `evaluate`; no gradient."""

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> Decoding:
        """Begin sampling up to `new_tokens` tokens after each prompt."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that an optimizer updates, the value head's included, by stable name."""

    def fixed(self) -> list[Tensor]:
        """The parameters that nothing updates, the reference's included, each once."""

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write an ordinary transformers (or PEFT) folder with tokenizer, the value head in its own file."""
