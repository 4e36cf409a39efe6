"""Endless shuffled batches whose place is a number.

Position p of the stream is item p mod n of epoch p div n, each epoch a permutation of all n rows drawn from
(seed, epoch). A batch is a function of its position alone: a checkpoint stores the step, and a process takes its
own slice of the same batch. Sorting the raw output of a counter-based generator keeps the order the same in every
version of numpy, which promises that for bit generators and not for `Generator.permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from hydralign.errors import ConfigError, DataError
from hydralign.types import Prompt

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stream(Generic[Item]):
    """All rows in a new order every epoch, without end and without leaving any out. Keeps no state."""

    rows: Sequence[Item]
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rows, str):
            raise DataError(f"rows={self.rows!r:.60} is one text: its letters would be rows. Give a list, [text].")
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.rows:
            raise DataError("a stream over no rows: there is nothing to draw batches from. Give it some.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative: no generator starts from it. Use 0 or more.")

    def batch(self, step: int, count: int, *, offset: int = 0) -> tuple[Item, ...]:
        """The `count` rows at positions `offset + step·count` and on. It may span epochs and be longer than one.

        A process of several takes its slice: `batch(step, count)[low:high]`. Raises ConfigError for a negative
        position or a count below 1.
        """
        start = offset + step * count
        if count < 1 or start < 0:
            raise ConfigError(
                f"a batch of {count} rows at position {start}: batches begin at 0 or later and have a row or more. "
                "Correct step, count or offset."
            )
        places = (divmod(position, len(self.rows)) for position in range(start, start + count))
        return tuple(self.rows[_order(len(self.rows), self.seed, epoch)[place]] for epoch, place in places)


PromptStream = Stream[Prompt | str]
"""Batches of prompts; plain texts are encoded by the policy that answers them."""


@lru_cache(maxsize=8)
def _order(size: int, seed: int, epoch: int) -> Sequence[int]:
    drawn = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
    return np.argsort(drawn, kind="stable").tolist()
