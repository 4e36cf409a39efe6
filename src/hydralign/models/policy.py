"""The seam between loops and models: what a policy can do, whatever its form.

A loop and a sampler see this face only; they never learn whether all weights are trained, adapters, or the
top layers of a shared trunk. Every log-probability is that of softmax(logits / temperature) with the stop
tokens masked below the row's minimum length, in every pass alike (`logprobs.shape_logits`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hydralign.types import Rows


class Evaluation(NamedTuple):
    """What a policy says of given rows; zero outside the rows' mask."""

    logprobs_BR: Tensor
    """Log-probability of each response token, fp32."""
    values_BR: Tensor
    """Predicted return before each response token, fp32."""
    entropy_BR: Tensor
    """Entropy of the distribution that each response token was drawn from, in nats."""


class Decoding(Protocol):
    """A batch in the middle of being sampled."""

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, values_B) of the next position: raw fp32 logits, and the value before that token."""

    def append(self, tokens_B: Tensor) -> None:
        """Read one sampled token per row."""

    def keep(self, index_B: Tensor) -> None:
        """Go on with these rows only, in this order."""


class Policy(Protocol):
    """A trained model with its value head and its frozen reference."""

    tokenizer: Any
    stop_ids: tuple[int, ...]
    precision: str
    context: int

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""

    def evaluate(self, rows: Rows, *, entropy_gradient: bool = False) -> Evaluation:
        """Log-probabilities, values and entropies of the responses, with gradient where grad mode is on."""

    def reference(self, rows: Rows) -> Tensor:
        """ref_logprobs_BR of the frozen reference, by the same path as `evaluate`; no gradient."""

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> Decoding:
        """Begin sampling up to `new_tokens` tokens after each prompt."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that an optimizer updates, the value head's included, by stable name."""

    def fixed(self) -> list[Tensor]:
        """The parameters that nothing updates, the reference's included, each once."""

    def export(self, folder: Path) -> None:
        """Write an ordinary transformers (or PEFT) folder with tokenizer, the value head in its own file."""
