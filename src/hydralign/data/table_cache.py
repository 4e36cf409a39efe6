"""Tables that were read once and are asked for again within a short while, such as during the checks before a run.

Outside of `cached_tables` nothing is cached: a file that changes is read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from hydralign.data.rows import Row, Table

MOST = 2**30
"""Characters that are cached in all; sources beyond are read each time."""


@dataclass
class _Cache:
    """What was read so far, and how many characters its rows hold."""

    rows: dict[Hashable, tuple[Row, ...]] = field(default_factory=dict)
    tables: dict[Hashable, Table] = field(default_factory=dict)
    characters: int = 0


_CACHE: ContextVar[_Cache | None] = ContextVar("cache", default=None)


@contextmanager
def cached_tables() -> Iterator[None]:
    """Inside, no source is read twice with the same settings. Sources must not change meanwhile."""
    if _CACHE.get() is not None:
        yield
        return
    token = _CACHE.set(_Cache())
    try:
        yield
    finally:
        _CACHE.reset(token)


def cached_rows(key: Hashable, read: Callable[[], tuple[Row, ...]]) -> tuple[Row, ...]:
    """The rows cached under this key, or those that `read` gives, which are cached if they are not too many."""
    cache = _CACHE.get()
    if cache is None:
        return read()
    if key not in cache.rows:
        rows = read()
        size = sum(_characters(row.values) for row in rows)
        if cache.characters + size > MOST:
            return rows
        cache.characters += size
        cache.rows[key] = rows
    return cache.rows[key]


def cached_table(key: Hashable, parts: Sequence[Hashable], create: Callable[[], Table]) -> Table:
    """The table cached under this key, or the one created now, cached where the rows of all its `parts` are."""
    cache = _CACHE.get()
    if cache is None:
        return create()
    if key in cache.tables:
        return cache.tables[key]
    table = create()
    if all(part in cache.rows for part in parts):
        cache.tables[key] = table
    return table


def _characters(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 8
