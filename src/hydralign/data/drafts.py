"""What every kind of data has in common: a record with the texts that filters measure and the key of its split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hydralign.data.rows import Row

Record = TypeVar("Record")


@dataclass(frozen=True)
class Draft(Generic[Record]):
    """A record on its way. Every one of `texts` must lie within the filter's bounds; equal `key`s share a side.

    `shortened` says that a chat template left out part of an answer. `written` is what the row's author wrote of the
    record, where a template wrote the rest of it; None stands for all of its texts.
    """

    record: Record
    key: str
    texts: tuple[str, ...]
    shortened: bool = False
    written: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used, and why, in words that fit behind a count."""

    reason: str


Drafter = Callable[[Row], Draft[Record] | LeftOut]
