"""Accuracy by group: how often a classifier is right on each kind of case in a suite of tests.

A suite of functional tests, such as HateCheck (Röttger et al. 2021), asks one thing in each of its parts, and an
accuracy over all of it hides the parts that fail. Intervals are Wilson's, of each group by itself; of 29 groups, one or
two miss by chance at 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hydralign.errors import DataError, shortened
from hydralign.evaluation.statistics import wilson

MOST_LISTED = 60
"""Groups that a table has lines for."""

_WIDEST = 40
"""Characters of a group's name in a table."""


@dataclass(frozen=True)
class GroupAccuracy:
    """Of the `n` rows of a group a share `accuracy` was judged rightly (a tie counts one half), with its 95 % Wilson
    interval.
    """

    group: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float


def group_accuracies(right_N: ArrayLike, groups: Sequence[str]) -> tuple[GroupAccuracy, ...]:
    """One entry per group, in the order in which the groups first come; row i belongs to `groups[i]`.

    Raises DataError for unequal numbers.
    """
    right: list[float] = np.asarray(right_N, dtype=np.float64).tolist()
    if len(right) != len(groups):
        raise DataError(
            f"{len(right)} judged rows and groups of {len(groups)}: each row needs one. Judge the same rows."
        )
    members: dict[str, list[float]] = {}
    for value, group in zip(right, groups, strict=True):
        members.setdefault(group, []).append(value)
    return tuple(
        GroupAccuracy(group, len(rows), sum(rows) / len(rows), *wilson(sum(rows), len(rows)))
        for group, rows in members.items()
    )


def group_table(accuracies: Sequence[GroupAccuracy]) -> list[str]:
    """One aligned line per group, the first MOST_LISTED of them; a last one counts the rest."""
    shown = accuracies[:MOST_LISTED]
    names = [shortened(" ".join(one.group.split()), _WIDEST, show=str) for one in shown]
    width, digits = max(map(len, names), default=0), max((len(f"{one.n:,}") for one in shown), default=0)
    lines = [
        f"  {name:<{width}}  {one.accuracy:.3f}  ({one.ci_low:.3f} to {one.ci_high:.3f})  n = {one.n:>{digits},}"
        for name, one in zip(names, shown, strict=True)
    ]
    more = len(accuracies) - len(shown)
    return [*lines, f"  and {more:,} more"] if more else lines
