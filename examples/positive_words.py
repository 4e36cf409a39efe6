"""A reward written in Python: the share of an answer's words that stand on a short list of praise."""

from __future__ import annotations

import re
from collections.abc import Sequence

PRAISE = (
    "amazing awesome beautiful best brilliant charming classic clever delight delightful enjoy enjoyable "
    "enjoyed entertaining excellent exciting fantastic fine fun funny good gem gorgeous great happy "
    "heartwarming hilarious impressive incredible love loved lovely magnificent masterpiece memorable "
    "nice outstanding perfect perfectly pleasant powerful recommend remarkable smart strong stunning "
    "superb sweet terrific thrilling touching wonderful wonderfully "
)
POSITIVE = frozenset(PRAISE.split())
WORD = re.compile(r"[a-z]+")


def positive_share(completions: Sequence[str]) -> list[float]:
    """Words of praise ÷ words, per answer, in percent; 0 for an answer without words."""
    words = [WORD.findall(text.lower()) for text in completions]
    return [100 * sum(word in POSITIVE for word in row) / max(1, len(row)) for row in words]
