"""Accuracy by group: hand-counted shares, Wilson intervals, and a table whose columns stand below each other."""

from __future__ import annotations

import pytest
import torch

from hydralign.errors import DataError
from hydralign.evaluation.groups import MOST_LISTED, group_accuracies, group_table


def test_each_group_has_its_own_share_and_interval() -> None:
    right_N = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    slur, plain = group_accuracies(right_N.numpy(), ["slur", "plain", "slur", "slur", "plain"])
    assert (slur.group, slur.n) == ("slur", 3)
    assert slur.accuracy == pytest.approx(2.5 / 3)  # a tie counts one half
    assert (plain.group, plain.n, plain.accuracy) == ("plain", 2, 0.5)
    # Wilson by hand for 1 of 2: z² = 3.8415; (1/2 + z²/4) ÷ (1 + z²/2) ± z √(1/8 + z²/16) ÷ (1 + z²/2)
    assert [plain.ci_low, plain.ci_high] == pytest.approx([0.0945, 0.9055], abs=1e-4)


def test_groups_that_do_not_fit_the_rows_are_refused() -> None:
    assert group_accuracies([], []) == ()
    with pytest.raises(DataError, match="2 judged rows and groups of 1"):
        group_accuracies([1, 0], ["a"])


def test_table_is_aligned_and_counts_what_it_leaves_out() -> None:
    lines = group_table(group_accuracies([1.0] * 1000 + [0.0], ["long\nname"] * 1000 + ["b"]))
    assert lines == [
        "  long name  1.000  (0.996 to 1.000)  n = 1,000",
        "  b          0.000  (0.000 to 0.793)  n =     1",
    ]
    many = group_table(group_accuracies([1.0] * 70, [str(n) * 50 for n in range(70)]))
    assert (len(many), many[-1]) == (MOST_LISTED + 1, "  and 10 more")
    assert all(len(line) < 90 for line in many)
