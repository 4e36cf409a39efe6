"""Tables that were read once and are asked for again within a short while, such as during the checks before a run.

Outside of `cached_tables` nothing is kept: a file that changes is read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydralign.data.rows import Row, Table

MOST = 2**30
"""Characters that are kept in all; sources beyond are read each time."""


class _Kept:
    """What was read so far, and how many characters its rows hold."""

    def __init__(self) -> None:
        self.rows: dict[Hashable, tuple[Row, ...]] = {}
        self.tables: dict[Hashable, Table] = {}
        self.characters = 0


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def cached_tables() -> Iterator[None]:
    """Inside, no source is read twice with the same settings. Sources must not change meanwhile."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set(_Kept())
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept_rows(key: Hashable, read: Callable[[], tuple[Row, ...]]) -> tuple[Row, ...]:
    """The rows kept under this key, or those that `read` gives, which are kept if they are not too many."""
    kept = _KEPT.get()
    if kept is None:
        return read()
    if key not in kept.rows:
        rows = read()
        size = sum(_characters(row.values) for row in rows)
        if kept.characters + size > MOST:
            return rows
        kept.characters += size
        kept.rows[key] = rows
    return kept.rows[key]


def kept_table(key: Hashable, parts: Sequence[Hashable], make: Callable[[], Table]) -> Table:
    """The table kept under this key, or the one made now, which is kept where the rows of all its `parts` are."""
    kept = _KEPT.get()
    if kept is None:
        return make()
    if key in kept.tables:
        return kept.tables[key]
    table = make()
    if all(part in kept.rows for part in parts):
        kept.tables[key] = table
    return table


def _characters(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 8
