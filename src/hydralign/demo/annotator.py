"""A simulated annotator: a rule that scores answers, and choices between two answers made with it, some of them wrong.

Nobody's judgement stands behind it. It is here so that the whole loop can run, and be measured against a known aim,
where no people and no network are at hand.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PRAISE = """amazing beautiful best brilliant charming enjoyable enjoyed excellent fantastic fine fun funny good great
impressive interesting liked love loved lovely nice perfect pleasant pleased recommend superb surprised terrific well
wonderful worth"""
_COMPLAINT = """annoyed annoying awful bad bored boring cheap confusing disappointed disappointing dull fail failed hate
hated horrible lame mess poor poorly predictable ridiculous sad slow stupid terrible ugly unfortunately waste wasted
weak worse worst"""
PRAISE, COMPLAINT = frozenset(_PRAISE.split()), frozenset(_COMPLAINT.split())
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


@dataclass(frozen=True, order=True)
class Answer:
    """A completion, and whether it ended by itself."""

    text: str
    finished: bool


def prefers_first(prompt: str, first: Answer, second: Answer, *, wrong: float, seed: int) -> bool:
    """Whether the annotator prefers the first of two answers; a coin decides between equal scores, and a share `wrong`
    of all choices is turned round.

    The chance is keyed by seed, prompt and both answers, whichever comes first: the same pair is always judged the
    same, and no other pair, nor the order of pairs, has a say in it.
    """
    lower, upper = sorted((first, second))
    key = json.dumps([seed, prompt, lower.text, lower.finished, upper.text, upper.finished])
    draw = random.Random(key)
    coin, noise = draw.random(), draw.random()
    scores = gold_rule([lower.text, upper.text], [lower.finished, upper.finished])
    lower_is_better = coin < 0.5 if scores[0] == scores[1] else scores[0] > scores[1]
    return (lower_is_better != (noise < wrong)) == (first == lower)
