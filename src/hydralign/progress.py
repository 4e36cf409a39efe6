"""Shows that a loop lives: one progress bar on a terminal, plain lines elsewhere, always on stderr.

A log file gets at most one line per ten seconds, plus the first and the last:

    ppo 12/100  reward 0.31  kl 2.4  length 17  eta 3:20

Numbers for machines go to the tracker; nothing here is meant to be parsed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from hydralign.streams import lasting

SECONDS_BETWEEN_LINES = 10.0
NUMBERS_SHOWN = 3


class Progress(Protocol):
    """Told about every finished step."""

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Step `step` (counted from 1) is done; the first three of `numbers` are shown."""


@contextmanager
def progress(
    label: str,
    total: int,
    *,
    start: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Progress over `total` steps of which `start` were done before (they do not count for the ETA).

    `stream` None is stderr; a bar is drawn when it is a terminal. NO_COLOR is honoured. `clock` counts seconds.
    A stream that goes away ends the output and nothing else.
    """
    stream = lasting(sys.stderr if stream is None else stream)
    console = Console(file=stream, markup=False, highlight=False)
    eta = _Eta(total, start, clock)
    if console.is_interactive:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        numbers = TextColumn("{task.fields[numbers]}", markup=False)
        with RichProgress(*columns, numbers, console=console, get_time=clock) as bar:
            yield _Bar(bar, label, eta)
    else:
        lines = _Lines(stream, label, eta)
        try:
            yield lines
        finally:
            lines.finish()


def say(text: str, *, stream: TextIO | None = None) -> None:
    """Writes `text` as a line of its own to stderr, above a progress bar if one is drawn. Brackets stay brackets.

    A stream that goes away ends the output and nothing else.
    """
    stream = lasting(sys.stderr if stream is None else stream)
    stream.write(f"{text}\n")
    stream.flush()


class _Eta:
    """Time left at the mean pace since `start`."""

    def __init__(self, total: int, start: int, clock: Callable[[], float]) -> None:
        self.total, self.start, self.clock = total, start, clock
        self.began = clock()

    def text(self, step: int) -> str:
        done = step - self.start
        if done <= 0:
            return "eta ?"
        seconds = round((self.clock() - self.began) / done * max(0, self.total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"eta {hours}:{minutes:02}:{seconds % 60:02}" if hours else f"eta {minutes}:{seconds % 60:02}"


class _Bar:
    def __init__(self, bar: RichProgress, label: str, eta: _Eta) -> None:
        self.bar, self.eta = bar, eta
        self.task = bar.add_task(label, total=eta.total, completed=eta.start, numbers="")

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        self.bar.update(self.task, completed=step, numbers="  ".join([*_shown(numbers), self.eta.text(step)]))


class _Lines:
    def __init__(self, stream: TextIO, label: str, eta: _Eta) -> None:
        self.stream, self.label, self.eta = stream, label, eta
        self.written_at: float | None = None
        self.held = ""

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        self.held = "  ".join([f"{self.label} {step}/{self.eta.total}", *_shown(numbers), self.eta.text(step)])
        if self.written_at is None or self.eta.clock() - self.written_at >= SECONDS_BETWEEN_LINES:
            self.finish()

    def finish(self) -> None:
        """Writes the line that was held back, if there is one."""
        if self.held:
            say(self.held, stream=self.stream)
            self.held, self.written_at = "", self.eta.clock()


def _shown(numbers: Mapping[str, float]) -> list[str]:
    """The first numbers with three significant digits, without an exponent below a million."""
    return [
        f"{name} {value:.0f}" if 1000 <= abs(value) < 1e6 else f"{name} {value:.3g}"
        for name, value in islice(numbers.items(), NUMBERS_SHOWN)
    ]
