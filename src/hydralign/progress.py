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
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from hydralign.streams import lasting

SECONDS_BETWEEN_LINES = 10.0
NUMBERS_SHOWN = 3


class Progress:
    """Is given every finished step, and shows it with the time left at the mean pace since `start`."""

    def __init__(self, total: int, start: int, clock: Callable[[], float], show: Callable[[int, str], None]) -> None:
        self._total, self._start, self._clock, self._show = total, start, clock, show
        self._began = clock()

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Step `step` (counted from 1) is done; the first three of `numbers` are shown."""
        self._show(step, "  ".join([*_shown(numbers), self._eta(step)]))

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "eta ?"
        seconds = round((self._clock() - self._began) / done * max(0, self._total - step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"eta {hours}:{minutes:02}:{seconds % 60:02}" if hours else f"eta {minutes}:{seconds % 60:02}"


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
    if console.is_interactive:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        numbers = TextColumn("{task.fields[numbers]}", markup=False)
        with RichProgress(*columns, numbers, console=console, get_time=clock) as bar:
            task = bar.add_task(label, total=total, completed=start, numbers="")
            yield Progress(total, start, clock, lambda step, text: bar.update(task, completed=step, numbers=text))
    else:
        lines = _Lines(stream, clock)
        try:
            yield Progress(total, start, clock, lambda step, text: lines.write(f"{label} {step}/{total}  {text}"))
        finally:
            lines.finish()


def say(text: str, *, stream: TextIO | None = None) -> None:
    """Writes `text` as a line of its own to stderr, above a progress bar if one is drawn. Brackets stay brackets.

    A stream that goes away ends the output and nothing else.
    """
    stream = lasting(sys.stderr if stream is None else stream)
    stream.write(f"{text}\n")
    stream.flush()


class _Lines:
    """At most one line per ten seconds; a later one replaces the line that is held back."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self.stream, self.clock = stream, clock
        self.written_at: float | None = None
        self.held = ""

    def write(self, line: str) -> None:
        self.held = line
        if self.written_at is None or self.clock() - self.written_at >= SECONDS_BETWEEN_LINES:
            self.finish()

    def finish(self) -> None:
        """Writes the line that was held back, if there is one."""
        if self.held:
            say(self.held, stream=self.stream)
            self.held, self.written_at = "", self.clock()


def _shown(numbers: Mapping[str, float]) -> list[str]:
    """The first numbers with three significant digits, without an exponent below a million."""
    return [
        f"{name} {value:.0f}" if 1000 <= abs(value) < 1e6 else f"{name} {value:.3g}"
        for name, value in islice(numbers.items(), NUMBERS_SHOWN)
    ]
