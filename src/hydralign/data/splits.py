"""Which rows are held out, and that nothing on the training side has a held-out prompt.

The hash split depends on the prompt alone, not on the file, its order or a seed. So prompts, demonstrations and
comparisons about the same prompt fall on the same side, and a larger percentage holds out a superset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from hydralign.config.data import HashSplit, HeldOut, LastSplit, PartConfig

Record = TypeVar("Record")
Keyed = tuple[str, Record]


@dataclass(frozen=True)
class Sides(Generic[Record]):
    """Training side, held-out side, and how many rows left the training side because their prompt is held out."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    leaking: int


def held_out_by_hash(key: str, percent: float) -> bool:
    """Whether a prompt is held out: `percent` of all prompts are. Blanks around the prompt do not count."""
    return _place(key) < percent


def in_part(key: str, part: PartConfig) -> bool:
    """Whether a prompt lies in this part of its source. Independent of which prompts are held out."""
    return part == PartConfig() or part.low <= _place(key, salt=b"part") < part.high


def _place(key: str, salt: bytes = b"") -> float:
    """Where a hash puts the prompt between 0 and 100. Blanks around it do not count."""
    digest = blake2b(key.strip().encode(), digest_size=8, salt=salt).digest()
    return int.from_bytes(digest) / 2**64 * 100


def split_rows(rows: Sequence[Keyed[Record]], held_out: HeldOut, other: Sequence[Keyed[Record]] = ()) -> Sides[Record]:
    """Divides rows, each with the prompt that decides. `other` are the rows of the held-out source, if it has one."""
    match held_out:
        case HashSplit(percent=percent):
            side = [held_out_by_hash(key, percent) for key, _ in rows]
        case LastSplit(percent=percent):
            first = len(rows) - _last_count(len(rows), percent)
            side = [place >= first for place in range(len(rows))]
        case _:
            side = [False] * len(rows)
    apart = [row for row, out in zip(rows, side, strict=True) if out] + list(other)
    keys = {key.strip() for key, _ in apart}
    candidates = [row for row, out in zip(rows, side, strict=True) if not out]
    train = tuple(record for key, record in candidates if key.strip() not in keys)
    return Sides(train, tuple(record for _, record in apart), len(candidates) - len(train))


def _last_count(rows: int, percent: float) -> int:
    return max(1, round(rows * percent / 100)) if rows > 1 else 0
