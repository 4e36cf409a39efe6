"""What every section of a recipe does with its folder: its config first, its metrics on the way, its result last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hydralign.config import Recipe
from hydralign.distributed import Distributed
from hydralign.progress import say
from hydralign.runs.section_files import write_json
from hydralign.runs.standing import prepare_folder
from hydralign.runs.steps import Step
from hydralign.tracking import Trackers, open_trackers

Made = TypeVar("Made")


@contextmanager
def open_section(recipe: Recipe, step: Step, processes: Distributed) -> Iterator[Trackers]:
    """The step's folder with its config and the record of its inputs in it, its metrics file and mirrors, closed at
    the end.
    """
    if not processes.main:
        processes.barrier()
        yield Trackers()
        return
    prepare_folder(recipe, step)
    trackers = open_trackers(step.folder, step.config.trackers, step.folder.parent.name, step.config.model_dump())
    processes.barrier()
    try:
        yield trackers
    finally:
        trackers.close()


def load_or_measure(
    path: Path,
    rows: str,
    make: Callable[[], Made],
    processes: Distributed,
    *,
    load: Callable[[Path], tuple[str, Made]],
    save: Callable[[Path, Made], None],
) -> Made:
    """What lies in a file of this run, or what is made now and written there. Every process returns the same.

    A damaged file is said and made again. `rows` is the fingerprint of the rows that are measured, and `load` gives
    that of the file besides: a file about other rows is said and made again too, so that before and after are always
    of the same ones.
    """
    if path.exists():
        try:
            stored, made = load(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{path} is damaged ({type(error).__name__}: {error}): measured again."
        else:
            if stored == rows:
                return made
            problem = (
                f"{path} is about other held-out rows than those chosen now, or was written by a version that took the "
                "first rows of the data: measured again. If training began with another choice, some of these rows "
                f"may have been trained on. Delete {path.parent} to begin anew."
            )
        if processes.main:
            say(problem)
    made = make()
    processes.barrier()
    if processes.main:
        save(path, made)
    processes.barrier()
    return made


def load_or_measure_numbers(
    path: Path, rows: str, make: Callable[[], list[float]], processes: Distributed
) -> list[float]:
    """`load_or_measure`, for one number per held-out row."""

    def load(file: Path) -> tuple[str, list[float]]:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return str(stored.get("rows", "")), [float(x) for x in stored["values"]]

    return load_or_measure(
        path,
        rows,
        make,
        processes,
        load=load,
        save=lambda file, values: write_json(file, {"rows": rows, "values": values}),
    )
