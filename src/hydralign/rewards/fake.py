"""Rewards with known answers, for tests of code that takes a reward. No model, no randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LengthReward:
    """Minus the distance of the completion's word count from `target`; the best answer gets 0."""

    target: int

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One float per row, at most 0."""
        return [-float(abs(len(completion.split()) - self.target)) for completion in completions]


@dataclass(frozen=True)
class TokenShareReward:
    """The share of completion tokens that are `token_text` (white space around a token aside)."""

    token_text: str

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_tokens: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[float]:
        """One float per row, from 0 to 1; 0 for an answer without tokens."""
        return [
            sum(token.strip() == self.token_text for token in tokens) / max(1, len(tokens))
            for tokens in completion_tokens
        ]
