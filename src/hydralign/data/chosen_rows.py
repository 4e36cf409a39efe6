"""Rows that a recipe chooses by the value of a column, before anything else is read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydralign.data.candidates import LeftOut
from hydralign.data.rows import Row, Table
from hydralign.errors import DataError, did_you_mean

Where = Mapping[str, Sequence[str | int | bool]]


def require_columns_of_where(table: Table, where: Where) -> None:
    """Raise DataError for a column that no row has: every row would be left out."""
    for name in where:
        if not table.has(name):
            raise DataError(
                f"where names column {name!r}, which {table.source} does not have: no row could be chosen by it. Its "
                f"columns are {', '.join(table.columns) or 'none'}. {did_you_mean(name, table.columns)}"
            )


def left_out_by(row: Row, where: Where) -> LeftOut | None:
    """Why this row is not used; None for one that each column's values allow. Numbers equal their text, and true equals
    "True"; a missing value equals nothing.
    """
    for name, wanted in where.items():
        if _as_text(row.values.get(name)) not in map(_as_text, wanted):
            return LeftOut(f"whose {name} is not {' or '.join(map(str, wanted))}")
    return None


def _as_text(value: object) -> str | None:
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None if value is None else str(value)
