"""What a loader returns: both sides of the split, and an account in which every row that was read appears once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Special tokens of the tokenizer that texts spell out, and in how many of the rows that were used."""

    withheld: tuple[str, ...] = ()
    """Columns that rewards do not get, since the sampler gives them something else under these names."""

    shortened: int = 0
    """Rows of which the chat template left out part of an answer."""

    cut_prompts: int = 0
    """Rows of which the prompt was too long, and lost part of itself."""

    how_cut: str = ""
    """Which prompts are too long, and what became of them, to stand behind their number."""

    columns: tuple[str, ...] = ()
    """All columns that some row of the sources has, under our names."""

    @property
    def kept(self) -> int:
        """Rows on either side of the split."""
        return self.train + self.held_out

    def describe(self, *, purpose: str | None = None) -> str:
        """One plain line on what is used; one on what was left out and why, and one on special tokens that texts spell,
        if there is anything to say.

        `purpose` says what all rows are there for, where it is not training.
        """
        sides = f"{self.train:,} to train on, {self.held_out:,} held out"
        used = f"{self.source}: {self.rows_read:,} rows read, {f'{self.kept:,} {purpose}' if purpose else sides}."
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        lines = [used, f"Left out: {reasons}."] if reasons else [used]
        if self.cut_prompts:
            lines.append(f"Of them {self.cut_prompts:,} {self.how_cut}.")
        if self.special_tokens:
            counts = ", ".join(f"{token!r} in {count:,} rows" for token, count in self.special_tokens.items())
            lines.append(f"Special tokens spelled out in texts, which are read as the real tokens: {counts}.")
        if self.shortened:
            lines.append(
                f"Of {self.shortened:,} rows the chat template leaves out part of the assistant's text (as templates "
                "do with thinking): that part is not learned."
            )
        for name in self.withheld:
            lines.append(
                f"Column {name!r} is not passed to rewards, which get what was sampled under that name. To pass it, "
                f"name it otherwise: data.prompts.columns: {{data_{name}: {name}}}."
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class DataSet(Generic[Record]):
    """Records of one kind. No prompt on the held-out side is on the training side."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    report: DataReport
