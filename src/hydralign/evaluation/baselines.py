"""Is a classifier better than one that never reads the text? The baseline, recall by class, and what to doubt.

The baseline of labelled texts names the most frequent label of the very rows that are judged, which is the best that a
constant answer can do there; that of comparisons is guessing, right half of the time. Both are compared row by row.
Balanced accuracy is the mean recall of the classes that have rows; a constant answer gets 1 ÷ their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hydralign.errors import DataError
from hydralign.evaluation.statistics import Difference, compare_paired, wilson

_MOST_NAMED = 8
"""Classes that a sentence lists before it only counts them."""


@dataclass(frozen=True)
class ClassRecall:
    """How the rows of one class fared: of its `n` rows a share `recall` was named rightly, with its 95 % Wilson
    interval; all three are None without rows. `chosen` rows were given this label, rightly or wrongly.
    """

    label: str
    n: int
    chosen: int
    recall: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Baseline:
    """What an answer that does not depend on the text achieves on the same rows."""

    words: str
    """What it does, as in "always naming 'spam'"."""
    accuracy: float
    above: Difference | None
    """Accuracy of the classifier − this, paired by row; None for a single row, which has no spread."""

    @property
    def beaten(self) -> bool:
        """Whether the classifier is better than this, distinguishably."""
        return self.above is not None and self.above.verdict == "better"


def majority_baseline(labels_N: ArrayLike, right_N: ArrayLike, names: Sequence[str]) -> Baseline:
    """Always naming the most frequent label (the first of several). Raises DataError for no rows or unequal numbers."""
    labels_N, right_N = _whole(labels_N), np.asarray(right_N, dtype=np.float64)
    _check(labels_N, right_N)
    most = int(np.bincount(labels_N, minlength=len(names)).argmax())
    return _baseline(f"always naming {names[most]!r}", (labels_N == most).astype(np.float64), right_N)


def guessing_baseline(right_N: ArrayLike) -> Baseline:
    """Guessing which of two answers was chosen. Raises DataError for no rows."""
    right_N = np.asarray(right_N, dtype=np.float64)
    _check(right_N, right_N)
    return _baseline("guessing", np.full(len(right_N), 0.5), right_N)


def class_recalls(labels_N: ArrayLike, choices_N: ArrayLike, names: Sequence[str]) -> tuple[ClassRecall, ...]:
    """One entry per class, in the order of `names`. Raises DataError for no rows or unequal numbers."""
    labels_N, choices_N = _whole(labels_N), _whole(choices_N)
    _check(labels_N, choices_N)
    found = []
    for place, name in enumerate(names):
        of_class_N = labels_N == place
        n, chosen = int(of_class_N.sum()), int((choices_N == place).sum())
        right = int((of_class_N & (choices_N == place)).sum())
        measured = (right / n, *wilson(right, n)) if n else (None, None, None)
        found.append(ClassRecall(name, n, chosen, *measured))
    return tuple(found)


def balanced_accuracy(classes: Sequence[ClassRecall]) -> float:
    """Mean recall over the classes that have rows."""
    return float(np.mean([one.recall for one in classes if one.recall is not None]))


def doubts(accuracy: float, baseline: Baseline, classes: Sequence[ClassRecall] = ()) -> list[str]:
    """One sentence for each reason not to trust the accuracy; none when there is no reason."""
    sentences = []
    if not baseline.beaten:
        below = baseline.above is not None and baseline.above.verdict == "worse"
        relation = "below" if below else "not distinguishable from"
        sentences.append(
            f"Accuracy {accuracy:.3f} is {relation} {baseline.accuracy:.3f}, which {baseline.words} gives: nothing "
            "shows that the text is read. Train longer or on more rows, or balance the data."
        )
    never = [one for one in classes if one.n and not one.chosen]
    wrong = [one for one in classes if one.chosen and one.recall == 0]
    absent = [one for one in classes if not one.n]
    if never:
        sentences.append(
            f"Never named: {_listed_classes(never)}. A reward that reads such a label's logit has nothing to go by."
        )
    if wrong:
        sentences.append(f"Never named rightly: {_listed_classes(wrong)}.")
    if absent:
        sentences.append(f"No rows of {_listed_classes(absent)}: nothing is known about it.")
    return sentences


def describe_classes(baseline: Baseline, classes: Sequence[ClassRecall]) -> str:
    """The baseline, balanced accuracy and recall of each class, as sentences."""
    sentence = f"{baseline.words[:1].upper()}{baseline.words[1:]} gives {baseline.accuracy:.3f}"
    if not classes:
        return f"{sentence}."
    recalls = ("–" if one.recall is None else f"{one.recall:.3f}" for one in classes)
    named = [f"{one.label} {recall} (n = {one.n:,})" for one, recall in zip(classes, recalls, strict=True)]
    return f"{sentence}, balanced accuracy {balanced_accuracy(classes):.3f}. Recall: {_listed(named)}."


def verdict_sentence(difference: Difference, baseline: Baseline) -> str:
    """Before → after in one line, which calls an accuracy better only if it is better than the baseline too."""
    sentence, end = difference.sentence(), f"{baseline.words} ({baseline.accuracy:.3f})"
    if difference.verdict != "better":
        return sentence
    if baseline.beaten:
        return sentence.replace(": better.", f": better, also than {end}.", 1)
    return sentence.replace(": better.", f": higher than before training, but not better than {end}.", 1)


def baseline_record(accuracy: float, baseline: Baseline, classes: Sequence[ClassRecall] = ()) -> dict[str, Any]:
    """The same as plain JSON: baseline, classes, balanced accuracy, warnings."""
    above = baseline.above
    interval = {"mean": above.difference, "ci_low": above.ci_low, "ci_high": above.ci_high} if above else None
    record: dict[str, Any] = {
        "baseline": {
            "answer": baseline.words,
            "accuracy": baseline.accuracy,
            "difference": interval,
            "verdict": above.verdict if above else "not distinguishable",
        },
        "warnings": doubts(accuracy, baseline, classes),
    }
    if classes:
        record["balanced_accuracy"] = balanced_accuracy(classes)
        record["classes"] = {one.label: {k: v for k, v in asdict(one).items() if k != "label"} for one in classes}
    return record


def _baseline(words: str, baseline_N: np.ndarray, right_N: np.ndarray) -> Baseline:
    above = compare_paired(f"accuracy above {words}", baseline_N, right_N, unit="rows") if len(right_N) > 1 else None
    return Baseline(words, float(baseline_N.mean()), above)


def _listed_classes(classes: Sequence[ClassRecall]) -> str:
    return _listed([f"{one.label!r}" + (f" ({one.n:,} rows)" if one.n else "") for one in classes])


def _listed(named: Sequence[str]) -> str:
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more


def _whole(values_N: ArrayLike) -> np.ndarray:
    return np.asarray(values_N).astype(np.int64)


def _check(one_N: np.ndarray, other_N: np.ndarray) -> None:
    if not len(one_N) or len(one_N) != len(other_N):
        raise DataError(
            f"{len(one_N)} and {len(other_N)} values of judged rows: each row needs one of both, and one row at least "
            "must be there. Judge the same rows."
        )
