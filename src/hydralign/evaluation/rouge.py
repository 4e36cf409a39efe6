"""How much of a human's answer is in the model's? ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), by the library rouge-score.

Each is an F measure from 0 to 1: the harmonic mean of the share of the answer's words (1), word pairs (2) or longest
common subsequence of words (L) that are in the reference, and the other way about. Words are runs of a-z and 0-9 in
lower case, and those longer than 3 letters are cut to their stems (Porter), as `evaluate.load("rouge")` does with
`use_stemmer=True`. L is that of whole texts as one sentence each (rougeL), not the one over lines (rougeLsum). Of
several references the best counts, for each of the three by itself.

Text in another script than Latin has no such words. A reference without any is no reference, an answer without any
scores 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from hydralign.errors import ConfigError, DataError, did_you_mean, shortened
from hydralign.types import Prompt

ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
"""The metrics, and what rouge-score calls them."""

_WORD = re.compile("[a-z0-9]")


def rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """One number per answer for each metric; NaN where the answer has no reference.

    `references` holds the texts that each answer is compared with. Raises DataError for unequal numbers of both.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if len(answers) != len(references):
        raise DataError(
            f"{len(answers)} answers and references for {len(references)}: it is unclear which belong together. Give "
            "each answer its references, an empty list where there are none."
        )
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores: dict[str, list[float]] = {name: [] for name in ROUGE}
    for answer, texts in zip(answers, references, strict=True):
        best = scorer.score_multi(texts, answer) if texts else {}
        for name, theirs in ROUGE.items():
            scores[name].append(float(best[theirs].fmeasure) if best else math.nan)
    return scores


def reference_texts(prompts: Sequence[Prompt], columns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The references of each prompt: what its `columns` hold, without gaps; () when there are no columns.

    Raises ConfigError for a column that no prompt has, DataError for what is no text, or when fewer than two prompts
    have a reference.
    """
    if not columns:
        return ()
    require_reference_columns(columns, {name for prompt in prompts for name in prompt.columns})
    found = tuple(tuple(_texts(prompt, columns)) for prompt in prompts)
    filled = sum(map(bool, found))
    if filled < 2:
        raise DataError(
            f"compare.references: of {len(prompts):,} held-out prompts {filled} have words (a-z, 0-9) in "
            f"{', '.join(columns)}: there is no mean to compare. Name columns with human answers, or leave "
            "compare.references out."
        )
    return found


def require_reference_columns(columns: Sequence[str], known: Iterable[str] | None) -> None:
    """Raise ConfigError for a column that is not among the `known` ones; nothing is checked where they are None."""
    for name in columns if known is not None else ():
        if name not in (there := sorted(known or ())):
            raise ConfigError(
                f"compare.references names column {name!r}: the prompts' data have no such column, so there is nothing "
                f"to compare answers with. Columns here: {', '.join(there) or 'none'}. {did_you_mean(name, there)}"
            )


def describe_rouge(columns: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """Which ROUGE it is, against what, and how many prompts have nothing to be compared with."""
    gaps = sum(not texts for texts in references)
    without = f"; {gaps:,} of {len(references):,} prompts have none and do not count" if gaps else ""
    best = "the best of columns " if len(columns) > 1 else "column "
    return (
        f"F measure against {best}{', '.join(columns)}{without}; words stemmed, L over whole texts, rouge-score "
        f"{version('rouge-score')}"
    )


def _texts(prompt: Prompt, columns: Sequence[str]) -> Iterable[str]:
    """What the prompt's columns hold, without what is missing, null or has no words."""
    for name in columns:
        text = prompt.columns.get(name)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"compare.references: column {name!r} holds {type(text).__name__} {shortened(text)} beside the prompt "
                f"{shortened(prompt.text)}: only text can be compared with an answer. Write one text there, and "
                "further ones in columns of their own."
            )
        if text is not None and _WORD.search(text.lower()):
            yield text
