"""Where a section stands when it is met again: to be run, gone on with, extended, finished, or stale.

Stale is what was made with inputs that have other contents now. A stale comparison is made again, with the old one
moved to compare/previous; a stale training is refused, since hours may lie in it. A comparison whose report only gets
another title or other notes keeps its answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydralign.config import Config, Recipe, dump_config, dump_recipe
from hydralign.config.paths import file_of, paths_of
from hydralign.config.recipe import OUTPUT
from hydralign.errors import RunFolderError
from hydralign.files import delete, write_text, writing
from hydralign.runs.inputs import RECORD, changes, inputs_of, read_record
from hydralign.runs.same_settings import comparable, comparable_text
from hydralign.runs.section_files import CONFIG, RESULT, read_object, read_result, read_stored_config, write_json
from hydralign.runs.steps import Step

PREVIOUS = "previous"
"""Folder inside a section's that holds the result before the newest one."""

_MEASURED = ("before.json", "after.json")


@dataclass(frozen=True)
class Standing:
    """Where a section stands, and why."""

    state: Literal["new", "started", "longer", "finished", "stale", "reworded"]
    description: str
    """The same in words, after the section's title."""
    changed: tuple[str, ...] = ()
    """Inputs with other contents than the section was made with."""


def prepare_folder(recipe: Recipe, step: Step) -> None:
    """Make the step's folder ready to run in: store OUT/recipe.yaml, its config.yaml and its inputs.json.

    In a folder without results, measurements of before and after that other settings or inputs gave are deleted first.
    """
    folder = step.folder
    stored = stored_config(recipe, step)
    has_other_settings = stored is not None and stored != comparable(step.config, recipe.output)
    if not has_results(folder) and (has_other_settings or _changed(recipe, step)[0]):
        for name in _MEASURED:
            delete(folder / name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(Path(recipe.output).expanduser() / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / RECORD, inputs_of(recipe, step, read_record(folder)))
    write_text(folder / CONFIG, dump_config(step.config))


def has_results(folder: Path) -> bool:
    """Whether something was made in a section's folder that other settings would not have made: more than its start."""
    saved = (path for path in (folder / "checkpoints").glob("*step-*") if not path.name.startswith("."))
    return (folder / RESULT).exists() or any(saved)


def stored_config(recipe: Recipe, step: Step) -> Config | None:
    """The settings that the folder was made with, as far as they change results; None when they are not known."""
    stored = read_stored_config(type(step.config), step.folder)
    # The output may have had another name when the section ran.
    return stored and comparable(stored, (read_record(step.folder) or {}).get("output", recipe.output))


def growth(recipe: Recipe, step: Step) -> tuple[str, Any, Any] | None:
    """(setting, then, now) of a section that has a checkpoint to go on from and is to be trained longer."""
    name = step.section.grows_by
    stored = stored_config(recipe, step) if name else None
    if name is None or stored is None or not any((step.folder / "checkpoints").glob("step-*")):
        return None
    then, now = getattr(stored, name), getattr(step.config, name)
    return (name, then, now) if now > then else None


def standing(recipe: Recipe, step: Step) -> Standing:
    """Where the step stands. Writes nothing.

    Raises RunFolderError when a training's result is damaged.
    """
    section, folder, output = step.section, step.folder, recipe.output.rstrip("/")
    done = (folder / RESULT).exists()
    if not has_results(folder):
        begun = not section.trains and (folder / CONFIG).exists()
        return Standing("started", "to be gone on with") if begun else Standing("new", "to be run")
    changed, gone = _changed(recipe, step)
    if not section.trains:
        changed += _changes_of_measurement(recipe, step, gone)
    elif done:
        read_result(folder)
    if changed:
        shown = [line.replace(OUTPUT, output) for line in changed]
        then = "and a run would stop here" if section.trains else "and to be made again"
        return Standing("stale", f"stale {then}, because {'; '.join(shown[:12])}", tuple(shown))
    if longer := growth(recipe, step):
        name, then, now = longer
        return Standing(
            "longer",
            f"to be trained longer: {name} {then:g} → {now:g}, from the newest checkpoint; from there on the learning "
            f"rate is that of a run with {name} {now:g}",
        )
    if not done:
        return Standing("started", "to be gone on with from its newest checkpoint")
    if _is_reworded(step):
        return Standing("reworded", "finished, and its report to be written again with another title or other notes")
    note = f" (not there any more, so not compared: {', '.join(gone).replace(OUTPUT, output)})" if gone else ""
    if read_record(folder) is None:
        note = " (made before inputs were recorded: whether they changed is not known)"
    return Standing("finished", f"finished{note}")


def _changes_of_measurement(recipe: Recipe, step: Step, gone: Sequence[str]) -> list[str]:
    """What something has to be measured again for, besides its settings and inputs."""
    changed = [f"{path} is to be made again" for path in gone if _is_unmade(recipe, path)]
    if read_record(step.folder) is None:
        read = outputs_read(recipe, step)  # made by sections that record inputs, so later than this result
        changed += [f"{path} is newer" for path in read if (path.parent / RECORD).exists()]
    result = step.folder / RESULT
    if result.exists() and read_object(result) is None:
        changed.append(f"{result} is damaged")
    return changed


def _is_reworded(step: Step) -> bool:
    """Whether the report was written with another title or other notes."""
    stored = read_stored_config(type(step.config), step.folder) if step.section.wording else None
    return stored is not None and any(getattr(stored, n) != getattr(step.config, n) for n in step.section.wording)


def _changed(recipe: Recipe, step: Step) -> tuple[list[str], list[str]]:
    record = read_record(step.folder)
    return ([], []) if record is None else changes(record, inputs_of(recipe, step, record))


def outputs_read(recipe: Recipe, step: Step) -> list[Path]:
    """Files and folders inside the output folder that the step's settings name."""
    texts = dict.fromkeys(comparable_text(file_of(text), recipe.output) for _, text in paths_of(step.config))
    output = Path(recipe.output).expanduser()
    return [output / text.removeprefix(f"{OUTPUT}/") for text in texts if text.startswith(f"{OUTPUT}/")]


def _is_unmade(recipe: Recipe, path: str) -> bool:
    """Whether a path below {output} belongs to a section that has no result."""
    parts = Path(path).parts
    if parts[0] != OUTPUT:
        return False
    output = Path(recipe.output).expanduser()
    return not any((output.joinpath(*parts[1:count], RESULT)).exists() for count in range(2, len(parts)))


def refuse_stale(recipe: Recipe, step: Step, changed: Sequence[str], trained: Sequence[Step]) -> None:
    """Raise RunFolderError that lists what changed and what to delete: the step's result, and those that build on it.

    `trained` are the steps whose results hours may lie in.
    """
    listed = "\n  ".join(["", *changed[:12], *([f"and {len(changed) - 12} more"] if len(changed) > 12 else [])])
    folders = ", ".join(str(one.folder) for one in (step, *_readers_of(recipe, step, trained)))
    raise RunFolderError(
        f"{step.title} in {step.folder} is stale: its inputs have other contents than when it was made, so its results "
        f"do not belong to this recipe.{listed}\nTo make it again, delete {folders}; nothing "
        "was changed so far. To keep it, put the old inputs back, or name another output for the new ones."
    )


def _readers_of(recipe: Recipe, step: Step, others: Sequence[Step]) -> list[Step]:
    """Those of the other steps that read what this one makes, directly or through another."""
    found = [step]
    for other in others:
        read = outputs_read(recipe, other)
        if other.title != step.title and any(path.is_relative_to(one.folder) for one in found for path in read):
            found.append(other)
    return found[1:]


def move_aside(step: Step) -> str:
    """Move a step's result, and of a comparison its answers and report, into its `previous` folder, the result last.

    Returns a sentence on where it lies. Interrupted in between, the section still counts as finished, and the rest is
    moved the next time.
    """
    folder, previous = step.folder, step.folder / PREVIOUS
    done = (folder / RESULT).exists()
    # What was measured before a training holds for a longer one too.
    own = ["after.json"] if step.section.trains else [*_MEASURED, CONFIG, RECORD]
    reports = [folder.parent / name for name in step.section.reports]
    with writing(previous):
        previous.mkdir(parents=True, exist_ok=True)
        for path in (*reports, *(folder / name for name in [*own, RESULT])):
            if path.exists():
                os.replace(path, previous / path.name)
    return f" Its last result lies in {previous}." if done else ""
