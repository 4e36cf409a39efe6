"""Special tokens that users' texts spell out, such as "<|endoftext|>" in a scraped page.

A tokenizer reads them as the real tokens: an end in the middle of a text, a turn that nobody took. They are counted
here and stay as they are, since texts that were rendered by a chat template beforehand want exactly that. What a
template itself writes around a chat does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hydralign.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELDS = (
    "text",
    "prompt",
    "query",
    "completion",
    "messages",
    "chosen",
    "rejected",
    "positive",
    "negative",
)
"""Columns that become token ids."""


def special_tokens(tokenizer: PreTrainedTokenizerBase | None) -> re.Pattern[str] | None:
    """Finds the special tokens of this tokenizer in a text; None where there are none."""
    if tokenizer is None:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def spelled_in(row: Row, special: re.Pattern[str] | None) -> set[str]:
    """The special tokens that the row's own texts spell."""
    if special is None:
        return set()
    return {found for name in _FIELDS for text in _texts(row.values.get(name)) for found in special.findall(text)}


def _texts(value: Any) -> Iterator[str]:
    """A text, or the contents of a chat's messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for message in value:
            if isinstance(message, Mapping):
                yield from _texts(message.get("content"))
