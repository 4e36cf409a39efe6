"""Which rows are held out, and that nothing on the training side has a held-out prompt.

The hash split depends on the prompt alone, not on the file, its order or a seed. So prompts, demonstrations and
comparisons about the same prompt fall on the same side, and a larger percentage holds out a superset. The prompt is
the one that a model sees: of a text that prompts are cut out of, the cut. Of cut prompts alone, common ones stay on the
training side; which ones are common depends on the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

from hydralign.config.data import HashSplit, HeldOut, LastSplit, PartConfig

Record = TypeVar("Record")
Keyed = tuple[str, Record]

COMMON = 0.1
"""Share of the rows to hold out above which a prompt is common, where there are enough others."""


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


def split_rows(
    rows: Sequence[Keyed[Record]],
    held_out: HeldOut,
    other: Sequence[Keyed[Record]] = (),
    *,
    seen: Callable[[Record], Hashable] | None = None,
    common_stay: bool = False,
) -> Sides[Record]:
    """Divides rows, each with the prompt that decides. `other` are the rows of the held-out source, if it has one.

    A row leaves the training side when its prompt is held out, or when a model sees the same of both: `seen` says
    what that is, such as token ids. With `common_stay` common prompts are not held out by hash (`_hashed_apart`).
    """
    match held_out:
        case HashSplit(percent=percent):
            side = _hashed_apart([key for key, _ in rows], percent, common_stay=common_stay)
        case LastSplit(percent=percent):
            first = len(rows) - _last_count(len(rows), percent)
            side = [place >= first for place in range(len(rows))]
        case _:
            side = [False] * len(rows)
    held_out_rows = [row for row, out in zip(rows, side, strict=True) if out] + list(other)
    candidates = [row for row, out in zip(rows, side, strict=True) if not out]
    keys = {key.strip() for key, _ in held_out_rows}
    seen_held_out = {seen(record) for _, record in held_out_rows} if seen else set()
    train = tuple(
        record
        for key, record in candidates
        if key.strip() not in keys and not (seen is not None and seen(record) in seen_held_out)
    )
    return Sides(train, tuple(record for _, record in held_out_rows), len(candidates) - len(train))


def _hashed_apart(keys: Sequence[str], percent: float, *, common_stay: bool) -> list[bool]:
    """Which rows the hash of their prompt holds out.

    Very short prompts are few and their counts unequal: by plain chance one that fills a tenth of all rows would be
    held out, or too little would. With `common_stay` the common ones (`_rarest`) therefore stay on the training side,
    and more of the others go, so that the share is right; at most half of them, where that is more.
    """
    if not common_stay:
        return [held_out_by_hash(key, percent) for key in keys]
    counts = Counter(key.strip() for key in keys)
    most, rare = _rarest(counts.values(), len(keys) * percent / 100)
    enough = min(percent * len(keys) / rare, max(percent, 50.0)) if rare else percent
    return [counts[key.strip()] <= most and held_out_by_hash(key, enough) for key in keys]


def _rarest(counts: Iterable[int], wanted: float) -> tuple[int, int]:
    """(rows of the most common prompt that may be held out, rows of all that may be).

    Those with at most a tenth of the wanted rows may. Where they have fewer than twice the wanted rows in all, more
    common ones may too, up to those that have the wanted rows by themselves.
    """
    most, total = 0, 0
    for count in sorted(counts):
        if count > max(1.0, wanted * COMMON, most) and (total >= 2 * wanted or count > wanted):
            break
        most, total = count, total + count
    return most, total


def _last_count(rows: int, percent: float) -> int:
    return max(1, round(rows * percent / 100)) if rows > 1 else 0
