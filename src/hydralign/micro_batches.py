"""How many rows go through a model at once, and fewer of them when memory runs out.

Losses and scores are sums over rows, so that a stage done again with smaller micro-batches computes the same. What no
smaller micro-batch can answer is an error that says so. A process that the operating system kills for its memory is
beyond this module.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch

from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, MemoryLimitError
from hydralign.progress import say

Result = TypeVar("Result")

ALLOCATOR_TEXTS = (
    "DefaultCPUAllocator: ",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What a RuntimeError says when it means out of memory and torch has no class of its own for it."""

OOM_HINTS = (
    "shorter texts or answers",
    "a smaller model",
    "LoRA (model.form: {type: lora})",
    "model.precision: bf16",
)
"""What helps in general when one row at a time is too many."""


class MicroBatcher:
    """How many rows go through a model at once: begins at what the recipe says, halved whenever memory runs out."""

    def __init__(
        self,
        rows: int,
        *,
        name: str = "micro_batch_size",
        speaks: bool = True,
        on_change: Callable[[int], None] | None = None,
        hints: Sequence[str] = OOM_HINTS,
    ) -> None:
        """`name` is the recipe's word for it. A new number is printed if `speaks`, and passed to `on_change`.

        `hints` are named when one row at a time is too many. Raises ConfigError for less than one row.
        """
        if not isinstance(rows, int) or rows < 1:
            raise ConfigError(f"{name}={rows!r:.60}: nothing would go through the model. Give a whole number above 0.")
        self.rows = rows
        self.name, self.speaks, self.on_change, self.hints = name, speaks, on_change, hints

    @classmethod
    def of(cls, rows: int | MicroBatcher) -> MicroBatcher:
        """`rows` itself, or a new one that begins at this number."""
        return rows if isinstance(rows, MicroBatcher) else cls(rows)

    def run(
        self,
        stage: Callable[[int], Result],
        processes: Distributed = SINGLE_PROCESS,
        *,
        total: int | None = None,
        undo: Callable[[], None] | None = None,
    ) -> Result:
        """`stage(rows)`, done again with half the rows as often as memory runs out; `undo` clears a failed attempt.

        `total` is how many rows there are, when more never go through at once. Raises MemoryLimitError when one row
        at a time is too many; other errors pass untouched, after `undo`. The stage must not communicate: a process
        repeats its own part while the others wait at the end, where all learn whether somebody failed, and then go
        on with the fewest rows of any.
        """
        try:
            result = processes.raise_together(partial(self._attempts, stage, total, undo, processes.main))
        except Exception:
            if undo:
                undo()
            raise
        self.use_smallest(processes)
        return result

    def use_smallest(self, processes: Distributed) -> None:
        """Go on with the fewest rows of any process. All processes call this together."""
        if processes.count > 1:
            own = torch.tensor([float(self.rows)], device=processes.device)
            self._lower(int(processes.gather(own, processes.count).min()), aloud=processes.main)

    def _attempts(
        self, stage: Callable[[int], Result], total: int | None, undo: Callable[[], None] | None, aloud: bool
    ) -> Result:
        while True:
            at_once = self.rows if total is None else max(1, min(self.rows, total))
            try:
                return stage(self.rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if at_once == 1:
                    raise _hopeless(error, self.hints) from error
            # Here and not above: as long as the error is being handled, its traceback keeps the attempt's tensors.
            if undo:
                undo()
            gc.collect()
            torch.cuda.empty_cache()
            self._lower(at_once // 2, aloud=aloud)

    def _lower(self, rows: int, *, aloud: bool) -> None:
        if rows >= self.rows:
            return
        if aloud and self.speaks:
            say(
                f"Out of memory: going on with {rows} {'row' if rows == 1 else 'rows'} at a time instead of "
                f"{self.rows}, which computes the same. {self.name}: {rows} in the recipe starts there."
            )
        self.rows = rows
        if self.on_change:
            self.on_change(rows)


def map_micro_batches(
    read: Callable[[list[int]], Result],
    order: Sequence[int],
    size: int | MicroBatcher,
    processes: Distributed = SINGLE_PROCESS,
    *,
    undo: Callable[[], None] | None = None,
) -> list[tuple[list[int], Result]]:
    """(row numbers, what `read` gives of them) of a few rows at a time, cut from `order`.

    All are read again with fewer at once when memory runs out. Raises as `MicroBatcher.run` does.
    """

    def attempt(rows: int) -> list[tuple[list[int], Result]]:
        return [(few, read(few)) for few in micro_batches(order, rows)]

    return MicroBatcher.of(size).run(attempt, processes, total=len(order), undo=undo)


def micro_batches(order: Sequence[int], rows: int) -> list[list[int]]:
    """`order` cut into lists of `rows` row numbers; the last may be shorter."""
    return [list(order[start : start + rows]) for start in range(0, len(order), rows)]


def longest_first(lengths: Iterable[int]) -> list[int]:
    """Row numbers by falling length: neighbours need little padding, and too large a micro-batch is known at once."""
    sizes = list(lengths)
    return sorted(range(len(sizes)), key=lambda row: -sizes[row])


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may mend this error, on any device."""
    if isinstance(error, MemoryLimitError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATOR_TEXTS)


def _hopeless(error: Exception, hints: Sequence[str]) -> MemoryLimitError:
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    amount = f" ({wanted[1]} more were wanted)" if wanted else ""
    return MemoryLimitError(
        f"Out of memory with one row at a time{amount}: there is no smaller micro-batch. "
        f"What helps: {'; '.join(hints)}."
    )
