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
from typing import TYPE_CHECKING

from hydralign.data.candidates import Record, texts_of
from hydralign.data.report import DataSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def count_special_tokens(rows: Iterable[Iterable[str]], tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """In how many rows' texts each special token of this tokenizer stands, the most frequent first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in added if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
    if not longest_first:
        return {}
    special = re.compile("|".join(map(re.escape, longest_first)))
    counts = Counter(token for texts in rows for token in {found for text in texts for found in special.findall(text)})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def recount_special_tokens(data: DataSet[Record], tokenizer: PreTrainedTokenizerBase) -> DataSet[Record]:
    """The same records with a report on what this tokenizer reads in them: one that was trained on them afterwards.

    For records that were loaded without a tokenizer, so of texts, not of chats.
    """
    counts = count_special_tokens(map(texts_of, (*data.train, *data.held_out)), tokenizer)
    return replace(data, report=replace(data.report, special_tokens=counts))
