"""What a loader returns: both sides of the split, and an account in which every row that was read appears once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Record = TypeVar("Record")


@dataclass(frozen=True)
class DataReport:
    """Counts of rows: `rows_read` = `train` + `held_out` + everything in `dropped` (reason: count)."""

    source: str
    rows_read: int
    train: int
    held_out: int
    dropped: Mapping[str, int]

    @property
    def kept(self) -> int:
        """Rows on either side of the split."""
        return self.train + self.held_out

    def describe(self, *, purpose: str | None = None) -> str:
        """One plain line on what is used, and one on what was left out and why, if anything was.

        `purpose` says what all rows are there for, where it is not training.
        """
        sides = f"{self.train:,} to train on, {self.held_out:,} held out"
        used = f"{self.source}: {self.rows_read:,} rows read, {f'{self.kept:,} {purpose}' if purpose else sides}."
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return f"{used}\nLeft out: {reasons}." if reasons else used


@dataclass(frozen=True)
class DataSet(Generic[Record]):
    """Records of one kind. No prompt on the held-out side is on the training side."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    report: DataReport
