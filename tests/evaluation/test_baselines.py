"""A classifier against an answer that never reads the text: numbers worked by hand."""

from __future__ import annotations

import pytest

from hydralign.errors import DataError
from hydralign.evaluation import baselines
from hydralign.evaluation.baselines import (
    balanced_accuracy,
    class_recalls,
    describe_classes,
    doubts,
    guessing_baseline,
    majority_baseline,
    verdict_sentence,
)
from hydralign.evaluation.statistics import compare_paired, wilson

NAMES = ("fine", "offensive", "unclear")
LABELS = [1] * 78 + [0] * 22
"""78 offensive texts, 22 fine ones, none that is unclear."""


def right(choices: list[int], labels: list[int] = LABELS) -> list[float]:
    return [float(choice == label) for choice, label in zip(choices, labels, strict=True)]


def test_recall_by_class_and_its_mean_are_counted() -> None:
    choices = [1] * 70 + [0] * 8 + [0] * 11 + [1] * 11
    fine, offensive, unclear = class_recalls(LABELS, choices, NAMES)
    assert (fine.n, fine.chosen, fine.recall) == (22, 19, 0.5)
    assert (fine.ci_low, fine.ci_high) == wilson(11, 22)
    assert (offensive.n, offensive.chosen, offensive.recall) == (78, 81, 70 / 78)
    assert (unclear.n, unclear.chosen, unclear.recall, unclear.ci_low) == (0, 0, None, None)
    assert balanced_accuracy([fine, offensive, unclear]) == (0.5 + 70 / 78) / 2


@pytest.mark.parametrize(
    ("choices", "verdict", "warned"),
    [
        ([1] * 78 + [0] * 20 + [1] * 2, "better", []),
        ([1] * 100, "not distinguishable", ["not distinguishable from 0.780", "Never named: 'fine' (22 rows)"]),
        ([1] * 78 + [2] * 22, "not distinguishable", ["0.780 is not distinguishable", "Never named: 'fine' (22 rows)"]),
        ([1] * 72 + [0] * 6 + [0] * 2 + [1] * 20, "not distinguishable", ["is not distinguishable"]),
        ([0] * 78 + [1] * 22, "worse", ["0.000 is below 0.780", "Never named rightly: 'fine' (22 rows), 'offensive'"]),
    ],
    ids=["reads", "constant", "one class never named", "no better", "wrong throughout"],
)
def test_accuracy_that_a_constant_answer_has_too_is_doubted(
    choices: list[int], verdict: str, warned: list[str]
) -> None:
    names = NAMES if 2 in choices else NAMES[:2]
    baseline = majority_baseline(LABELS, right(choices), names)
    assert (baseline.words, baseline.accuracy) == ("always naming 'offensive'", 0.78)
    assert baseline.above is not None
    assert baseline.above.verdict == verdict
    accuracy = sum(right(choices)) / 100
    said = doubts(accuracy, baseline, class_recalls(LABELS, choices, names))
    assert [any(part in line for line in said) for part in warned] == [True] * len(warned)
    assert bool(said) is bool(warned)


def test_class_without_rows_is_named() -> None:
    choices = [1] * 78 + [0] * 22
    said = doubts(1.0, majority_baseline(LABELS, right(choices), NAMES), class_recalls(LABELS, choices, NAMES))
    assert said == ["No rows of 'unclear': nothing is known about it."]


def test_better_than_before_is_not_called_better_below_the_baseline() -> None:
    untrained, constant, reader = [0] * 100, [1] * 74 + [0] * 26, LABELS
    improved = compare_paired("held-out accuracy", right(untrained), right([1] * 74 + [0] * 4 + [1] * 22))
    assert improved.verdict == "better"
    poor = majority_baseline(LABELS, right([1] * 74 + [0] * 4 + [1] * 22), NAMES)
    told = verdict_sentence(improved, poor)
    assert "higher than before training, but not better than always naming 'offensive' (0.780)." in told
    assert ": better" not in told
    good = majority_baseline(LABELS, right(constant), NAMES)  # 74 + 22 of 100 right
    told = verdict_sentence(compare_paired("held-out accuracy", right(untrained), right(constant)), good)
    assert told.endswith("n = 100): better, also than always naming 'offensive' (0.780).")
    same = compare_paired("held-out accuracy", right(reader), right(reader))
    assert verdict_sentence(same, good) == same.sentence()


def test_comparisons_are_held_against_guessing() -> None:
    assert guessing_baseline([1.0] * 52 + [0.0] * 48).beaten is False
    assert guessing_baseline([1.0] * 70 + [0.0] * 30).beaten is True
    assert guessing_baseline([0.5] * 100).beaten is False
    assert doubts(0.52, guessing_baseline([1.0] * 52 + [0.0] * 48))[0].startswith(
        "Accuracy 0.520 is not distinguishable from 0.500, which guessing gives"
    )


def test_one_row_proves_nothing_and_no_row_is_refused() -> None:
    alone = majority_baseline([1], [1.0], NAMES)
    assert (alone.accuracy, alone.above, alone.beaten) == (1.0, None, False)
    assert baselines.baseline_record(1.0, alone)["baseline"]["verdict"] == "not distinguishable"
    with pytest.raises(DataError, match="0 and 0 values"):
        class_recalls([], [], NAMES)
    with pytest.raises(DataError, match="2 and 1 values"):
        majority_baseline([1, 0], [1.0], NAMES)


def test_many_classes_are_counted_not_listed() -> None:
    names = [f"c{n}" for n in range(60)]
    labels = [*range(60), 0]
    recalls = class_recalls(labels, [0] * 61, names)
    baseline = majority_baseline(labels, right([0] * 61, labels), names)
    assert describe_classes(baseline, recalls) == (
        "Always naming 'c0' gives 0.033, balanced accuracy 0.017. Recall: c0 1.000 (n = 2), "
        + ", ".join(f"c{n} 0.000 (n = 1)" for n in range(1, 8))
        + " and 52 more."
    )
    assert "'c8' (1 rows) and 51 more" in doubts(2 / 61, baseline, recalls)[1]
