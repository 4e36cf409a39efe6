"""A simulated annotator: a rule that scores answers, and choices between two answers made with it, some of them wrong.

Nobody's judgement stands behind it. It is here so that the whole loop can run, and be measured against a known aim,
where no people and no network are at hand.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

PRAISE = frozenset(
    re.findall(
        r"\w+",
        """amazing beautiful best brilliant charming enjoyable enjoyed excellent fantastic fine fun funny good great
        impressive interesting liked love loved lovely nice perfect pleasant pleased recommend superb surprised terrific
        well wonderful worth""",
    )
)
COMPLAINT = frozenset(
    re.findall(
        r"\w+",
        """annoyed annoying awful bad bored boring cheap confusing disappointed disappointing dull fail failed hate
        hated horrible lame mess poor poorly predictable ridiculous sad slow stupid terrible ugly unfortunately waste
        wasted
        weak worse worst""",
    )
)
MOST = 3
"""Different words of praise that count in one answer."""


def gold_rule(completions: Sequence[str], finished: Sequence[bool], **_: Any) -> list[float]:
    """One score per answer: +1 for each different word of praise (three at most), −1 for each different word of
    complaint, −1 for an answer that does not end by itself.
    """
    return [_score(text, ended) for text, ended in zip(completions, finished, strict=True)]


def _score(text: str, ended: bool) -> float:
    words = set(re.findall(r"[a-z]+", text.lower()))
    return float(min(MOST, len(words & PRAISE)) - len(words & COMPLAINT) - (not ended))


def prefers_first(first: float, second: float, *, wrong: float, draw: random.Random) -> bool:
    """Whether the annotator prefers the first of two answers with these scores; a coin decides between equals, and a
    share `wrong` of all choices is turned round.
    """
    choice = draw.random() < 0.5 if first == second else first > second
    return choice != (draw.random() < wrong)
