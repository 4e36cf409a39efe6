"""Special tokens that users' texts spell out, such as "<|endoftext|>" in a scraped page.

A tokenizer reads them as the real tokens: an end in the middle of a text, a turn that nobody took. They are counted
here and stay as they are, since texts that were rendered by a chat template beforehand want exactly that. Only texts
that become token ids count, and of a chat what its author wrote, not what a template writes around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from hydralign.data.report import DataSet
from hydralign.types import Demonstration, LabelledText, Preference, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = TypeVar("Record")


def special_tokens(tokenizer: PreTrainedTokenizerBase | None) -> re.Pattern[str] | None:
    """Finds the special tokens of this tokenizer in a text; None where there are none."""
    if tokenizer is None:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def spelled_in(texts: Iterable[str], special: re.Pattern[str] | None) -> set[str]:
    """The special tokens that these texts spell."""
    return set() if special is None else {found for text in texts for found in special.findall(text)}


def texts_of(record: object) -> tuple[str, ...]:
    """The texts of a record that become token ids."""
    match record:
        case Prompt(text=text) | LabelledText(text=text):
            return (text,)
        case Demonstration(prompt=prompt, completion=completion):
            return (prompt, completion)
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            return (prompt, chosen, rejected)
    raise AssertionError(f"a record of type {type(record).__name__}")


def counted(found: Iterable[set[str]]) -> dict[str, int]:
    """In how many rows each token was found, the most frequent first."""
    counts = Counter(token for tokens in found for token in tokens)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def with_spelled(data: DataSet[Record], tokenizer: PreTrainedTokenizerBase) -> DataSet[Record]:
    """The same records with a report on what this tokenizer reads in them: one that was trained on them afterwards.

    For records that were loaded without a tokenizer, so of texts, not of chats.
    """
    special = special_tokens(tokenizer)
    spelled = counted(spelled_in(texts_of(record), special) for record in (*data.train, *data.held_out))
    return replace(data, report=replace(data.report, spelled=spelled))
