"""What every section of a recipe does with its folder: its config first, its metrics on the way, its result last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydralign.config.base import Config
from hydralign.config.loading import dump_config
from hydralign.files import write_text
from hydralign.processes import Processes
from hydralign.progress import say
from hydralign.tracking import JsonLines, Tracker, open_trackers

Made = TypeVar("Made")

RESULT = "evaluation.json"
"""Written last: a section whose folder holds it is finished."""


@dataclass(frozen=True)
class Records:
    """Where a section's metrics go. `local` is the file that is cut back when a run resumes; None where nothing is
    written, which is on all processes but the main one.
    """

    tracker: Tracker
    local: JsonLines | None


@contextmanager
def opened(folder: Path, config: Any, processes: Processes) -> Iterator[Records]:
    """The section's folder with its config in it, and its metrics file and mirrors, closed at the end."""
    if not processes.main:
        processes.wait()
        yield Records(Silent(), None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    trackers = open_trackers(folder, config.trackers, folder.parent.name, config.model_dump())
    processes.wait()
    try:
        yield Records(trackers, trackers.primary)
    finally:
        trackers.close()


def write_config(folder: Path, config: Config) -> None:
    """config.yaml: the section as the run resolved it."""
    write_text(folder / "config.yaml", dump_config(config))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def kept(
    path: Path,
    make: Callable[[], Made],
    processes: Processes,
    *,
    load: Callable[[Path], Made],
    save: Callable[[Path, Made], None],
) -> Made:
    """What lies in a file of this run, or what is made now and written there. Every process returns the same.

    A damaged file is said and made again.
    """
    if path.exists():
        try:
            return load(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if processes.main:
                say(f"{path} is damaged ({type(error).__name__}: {error}): measured again.")
    made = make()
    processes.wait()
    if processes.main:
        save(path, made)
    processes.wait()
    return made


def kept_numbers(path: Path, make: Callable[[], list[float]], processes: Processes) -> list[float]:
    """`kept`, for one number per held-out row."""
    return kept(
        path,
        make,
        processes,
        load=lambda file: [float(x) for x in json.loads(file.read_text(encoding="utf-8"))["values"]],
        save=lambda file, values: write_json(file, {"values": values}),
    )


class Silent:
    """The tracker of processes that do not write."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
