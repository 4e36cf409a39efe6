"""A row that knows where it stood, so that every complaint about it names source, row and field.

It checks fields when they are asked for; it reads no file and makes no record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydralign.data.subsets import hash_order
from hydralign.errors import DataError, RowError, shortened


class EmptyTextError(RowError):
    """A text that must not be empty is: an error, or a counted row when the filter says so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by name (ours and its own), and where it stands. `counting` says what `number` counts."""

    source: str
    number: int
    values: Mapping[str, Any]
    counting: str = "rows count from 1"
    theirs: Mapping[str, str] = field(default_factory=dict)

    def error(self, name: str, problem: str, kind: type[RowError] = RowError) -> RowError:
        """The error to raise for field `name`, which is shown as it is called in the file."""
        return kind(self.source, self.number, self.theirs.get(name, name), f"{problem} ({self.counting}).")

    def value(self, name: str) -> Any:
        """The field's value. Raises RowError when it is missing or None."""
        value = self.values.get(name)
        if value is None:
            problem = "is null" if name in self.values else "is missing"
            raise self.error(name, f"{problem}: every row needs it. Add it to this row, or take the row out")
        return value

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """The field as text. Raises RowError when it is no text, EmptyTextError when it is blank."""
        return self.checked_text(name, self.value(name), may_be_empty=may_be_empty)

    def checked_text(self, name: str, value: object, *, may_be_empty: bool = False) -> str:
        """`value`, found in field `name`, as text. Raises RowError when it is no text, EmptyTextError when blank."""
        if not isinstance(value, str):
            raise self.error(
                name, f"is {type(value).__name__} {shortened(value)}: text is needed. Write it as a string"
            )
        if not value.isascii() and not _encodable(value):
            raise self.error(name, "holds half a surrogate pair: no tokenizer reads that. Repair the text")
        if not may_be_empty and not value.strip():
            raise self.empty(name)
        return value

    def empty(self, name: str) -> RowError:
        """The error for a field that holds nothing to read or to learn."""
        remedy = "Fill it in, take the row out, or set filter.empty: skip to leave out such rows and count them"
        return self.error(name, f"is empty: there is nothing to learn from it. {remedy}", EmptyTextError)

    def without(self, *names: str) -> dict[str, Any]:
        """The row's other columns."""
        return {name: value for name, value in self.values.items() if name not in names}


@dataclass(frozen=True)
class Table:
    """The rows of one source, under our names. `columns` are all that any row has; `mapped` are ours by mapping."""

    source: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    mapped: frozenset[str] = frozenset()

    @cached_property
    def order(self) -> list[int]:
        """The places of all rows, in the order in which a limit takes them."""
        return hash_order([row.values for row in self.rows])

    def has(self, *names: str) -> bool:
        """Whether some row has each of these columns."""
        return all(name in self.columns for name in names)

    def first(self, *names: str) -> str | None:
        """The first of these columns that `columns` of the recipe maps, else the first that some row has."""
        there = [name for name in names if self.has(name)]
        return next((name for name in there if name in self.mapped), there[0] if there else None)

    def lacks(self, what: str, needed: str, example: str) -> DataError:
        """The error for a source whose columns do not make `what`; `example` is one of our names."""
        return DataError(
            f"{self.source} has no columns for {what}: {needed} needed, and its columns are "
            f"{', '.join(self.columns) or 'none'}. Name yours, for example columns: {{{example}: your_name}}."
        )


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
