"""Bounds on the length of texts in characters and tokens, both inclusive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydralign.config.data import FilterConfig
from hydralign.data.drafts import Draft, LeftOut, Record
from hydralign.data.tokens import encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def within_bounds(
    drafts: Sequence[Draft[Record] | LeftOut], bounds: FilterConfig, tokenizer: PreTrainedTokenizerBase | None
) -> list[Draft[Record] | LeftOut]:
    """The same drafts in the same order, those outside the bounds replaced by the reason.

    A draft is measured by all of its texts. Tokens are counted as prompts are encoded, and only where a bound on
    them and a tokenizer are given.
    """
    low, high = bounds.min_characters, bounds.max_characters
    kept = [_bounded(draft, [len(text) for text in _texts(draft)], low, high, "characters") for draft in drafts]
    low, high = bounds.min_tokens, bounds.max_tokens
    if tokenizer is None or (low is None and high is None):
        return kept
    counts = iter(len(ids) for ids in encode_prompts(tokenizer, [text for draft in kept for text in _texts(draft)]))
    return [_bounded(draft, [next(counts) for _ in _texts(draft)], low, high, "tokens") for draft in kept]


def _texts(draft: Draft[Record] | LeftOut) -> tuple[str, ...]:
    return draft.texts if isinstance(draft, Draft) else ()


def _bounded(
    draft: Draft[Record] | LeftOut, lengths: Sequence[int], low: int | None, high: int | None, unit: str
) -> Draft[Record] | LeftOut:
    if lengths and low is not None and min(lengths) < low:
        return LeftOut(f"shorter than {low:,} {unit}")
    if lengths and high is not None and max(lengths) > high:
        return LeftOut(f"longer than {high:,} {unit}")
    return draft
