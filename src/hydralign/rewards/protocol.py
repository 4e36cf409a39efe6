"""What a reward is: any callable that turns texts into numbers.

It sees text, never token ids, so its tokenizer may differ from the policy's. Special tokens are already stripped.
Every column of the data set is passed by name, one entry per row, and two more are always among them:
`finished` (list of bool: a stop token ended the answer) and `completion_tokens` (list of lists of str: the
answer's tokens, one string each).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Reward(Protocol):
    """One entry per row: a float, a list of floats (one per completion token), or None for "does not apply"."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> Sequence[float | Sequence[float] | None]: ...
