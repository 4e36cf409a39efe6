"""Token rows of unequal length in right-padded batches of similar length.

Sorting by length saves padding and changes no score: padding is masked, and every row is scored by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hydralign.errors import RewardError
from hydralign.micro_batches import MicroBatcher, longest_first, map_micro_batches


def require_equal_lengths(**lists: Sequence[Any]) -> None:
    """Raise RewardError unless these are lists of one length: a text would be scored letter by letter."""
    sizes = {name: None if isinstance(rows, str) else len(rows) for name, rows in lists.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        told = ", ".join(f"{name}: {'one text' if size is None else f'{size} entries'}" for name, size in sizes.items())
        raise RewardError(
            f"{told}: it is unclear what belongs to which answer. Give lists with one entry per row, [text] for one."
        )


def score_batched(
    rows: Sequence[Sequence[int]],
    forward: Callable[[Sequence[Sequence[int]]], Tensor],
    *,
    batch_size: int | MicroBatcher,
) -> list[float]:
    """`forward` (rows of ids to `scores_B`) over all rows, without gradients; the result is in the rows' order."""

    def read(few: list[int]) -> list[float]:
        return forward([rows[row] for row in few]).tolist()

    with torch.no_grad():
        parts = map_micro_batches(read, longest_first(map(len, rows)), batch_size)
    scores = {row: score for few, part in parts for row, score in zip(few, part, strict=True)}
    return [scores[row] for row in range(len(rows))]
