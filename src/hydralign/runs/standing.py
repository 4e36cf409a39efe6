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

from hydralign.config import Config, PPOConfig, Recipe, dump_recipe, load_config
from hydralign.config.compare import CompareConfig
from hydralign.config.paths import paths_of
from hydralign.config.recipe import OUTPUT
from hydralign.config.training import SupervisedConfig
from hydralign.errors import ConfigError, RunFolderError
from hydralign.files import delete, write_text, writing
from hydralign.runs.inputs import RECORD, changes, inputs_of, read_record
from hydralign.runs.same_settings import comparable, comparable_text
from hydralign.runs.section_files import CONFIG, RESULT, read_object, read_result, write_config, write_json

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


def delete_outdated_measurements(recipe: Recipe, config: Config, folder: Path) -> None:
    """Delete before.json and after.json of a section without results if other settings or inputs made them."""
    if not has_results(folder) and (changed_settings(recipe, config, folder) or _changed(recipe, config, folder)[0]):
        for name in _MEASURED:
            delete(folder / name)


def record_start(recipe: Recipe, config: Config, folder: Path) -> None:
    """Store what the section is about to run with: OUT/recipe.yaml, its config.yaml and its inputs.json."""
    output = Path(recipe.output).expanduser()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(output / "recipe.yaml", dump_recipe(recipe))
    write_json(folder / RECORD, inputs_of(recipe, config, read_record(folder)))
    write_config(folder, config)


def has_results(folder: Path) -> bool:
    """Whether something was made in a section's folder that other settings would not have made: more than its start."""
    saved = (path for path in (folder / "checkpoints").glob("*step-*") if not path.name.startswith("."))
    return (folder / RESULT).exists() or any(saved)


def stored_config(recipe: Recipe, config: Config, folder: Path) -> Config | None:
    """The settings that the folder was made with, as far as they change results; None when they cannot be told."""
    try:
        stored = load_config(type(config), folder / CONFIG)
    except ConfigError:
        return None
    # The output may have had another name when the section ran.
    return comparable(stored, (read_record(folder) or {}).get("output", recipe.output))


def changed_settings(recipe: Recipe, config: Config, folder: Path) -> bool:
    """Whether the folder was made with settings that give another result than these."""
    stored = stored_config(recipe, config, folder)
    return stored is not None and stored != comparable(config, recipe.output)


def growth(recipe: Recipe, config: Config, folder: Path) -> tuple[str, Any, Any] | None:
    """(setting, then, now) of a section that has a checkpoint to go on from and is to be trained longer."""
    name = "steps" if isinstance(config, PPOConfig) else "epochs" if isinstance(config, SupervisedConfig) else None
    stored = stored_config(recipe, config, folder) if name else None
    if name is None or stored is None or not any((folder / "checkpoints").glob("step-*")):
        return None
    then, now = getattr(stored, name), getattr(config, name)
    return (name, then, now) if now > then else None


def standing(recipe: Recipe, config: Config, folder: Path) -> Standing:
    """Where the section with this config and folder stands. Writes nothing.

    Raises RunFolderError when a training's result is damaged.
    """
    done = (folder / RESULT).exists()
    if not has_results(folder):
        redone = isinstance(config, CompareConfig) and (folder / CONFIG).exists()
        return Standing("started", "to be gone on with") if redone else Standing("new", "to be run")
    changed, gone = _changed(recipe, config, folder)
    if isinstance(config, CompareConfig):
        changed += _changes_of_comparison(recipe, config, folder, gone)
    elif done:
        read_result(folder)
    if changed:
        shown = [line.replace(OUTPUT, recipe.output.rstrip("/")) for line in changed]
        then = "and to be made again" if isinstance(config, CompareConfig) else "and a run would stop here"
        return Standing("stale", f"stale {then}, because {'; '.join(shown[:12])}", tuple(shown))
    if longer := growth(recipe, config, folder):
        name, then, now = longer
        return Standing(
            "longer",
            f"to be trained longer: {name} {then:g} → {now:g}, from the newest checkpoint; from there on the learning "
            f"rate is that of a run with {name} {now:g}",
        )
    if not done:
        return Standing("started", "to be gone on with from its newest checkpoint")
    if isinstance(config, CompareConfig) and _is_reworded(config, folder):
        return Standing("reworded", "finished, and its report to be written again with another title or other notes")
    note = (
        f" (not there any more, so not compared: {', '.join(gone).replace(OUTPUT, recipe.output.rstrip('/'))})"
        if gone
        else ""
    )
    if read_record(folder) is None:
        note = " (made before inputs were recorded: whether they changed is not known)"
    return Standing("finished", f"finished{note}")


def _changes_of_comparison(recipe: Recipe, config: CompareConfig, folder: Path, gone: Sequence[str]) -> list[str]:
    """What a comparison has to be made again for, besides its settings and inputs."""
    changed = [f"{path} is to be made again" for path in gone if _is_unmade(recipe, path)]
    if read_record(folder) is None:
        changed += _newer_inputs(recipe, config)
    if (folder / RESULT).exists() and read_object(folder / RESULT) is None:
        changed.append(f"{folder / RESULT} is damaged")
    return changed


def _is_reworded(config: CompareConfig, folder: Path) -> bool:
    """Whether the report was written with another title or other notes."""
    try:
        stored = load_config(CompareConfig, folder / CONFIG)
    except ConfigError:
        return False
    return (stored.title, stored.notes) != (config.title, config.notes)


def _changed(recipe: Recipe, config: Config, folder: Path) -> tuple[list[str], list[str]]:
    record = read_record(folder)
    return ([], []) if record is None else changes(record, inputs_of(recipe, config, record))


def _newer_inputs(recipe: Recipe, config: Config) -> list[str]:
    """What a comparison that was made before inputs were recorded reads of sections that were made since."""
    output = Path(recipe.output).expanduser()
    texts = (comparable_text(text, recipe.output) for _, text in paths_of(config))
    made = [text for text in texts if text.startswith(f"{OUTPUT}/")]
    return [
        f"{text} is newer"
        for text in made
        if (output / text.removeprefix(f"{OUTPUT}/")).parent.joinpath(RECORD).exists()
    ]


def _is_unmade(recipe: Recipe, path: str) -> bool:
    """Whether a path below {output} belongs to a section that has no result."""
    parts = Path(path).parts
    if parts[0] != OUTPUT:
        return False
    output = Path(recipe.output).expanduser()
    return not any((output.joinpath(*parts[1:count], RESULT)).exists() for count in range(2, len(parts)))


def refuse_stale(recipe: Recipe, title: str, folder: Path, changed: Sequence[str], readers: Sequence[str]) -> None:
    """Raise RunFolderError that lists what changed and what to delete."""
    output = Path(recipe.output).expanduser()
    listed = "\n  ".join(["", *changed[:12], *([f"and {len(changed) - 12} more"] if len(changed) > 12 else [])])
    folders = ", ".join(str(output / one) for one in (title, *readers))
    raise RunFolderError(
        f"{title} in {folder} is stale: its inputs have other contents than when it was made, so its results do not "
        f"belong to this recipe.{listed}\nTo make it again, delete {folders}; nothing "
        "was changed so far. To keep it, put the old inputs back, or name another output for the new ones."
    )


def readers_of(title: str, configs: Sequence[tuple[str, Config]], output: str) -> list[str]:
    """Titles of trained sections that read what this one makes, directly or through another."""
    found = [title]
    for other, config in configs:
        if other in found or isinstance(config, CompareConfig):
            continue
        texts = [comparable_text(text, output) for _, text in paths_of(config)]
        if any(text.startswith(f"{OUTPUT}/{one}/") for one in found for text in texts):
            found.append(other)
    return found[1:]


def move_aside(folder: Path, config: Config) -> str:
    """Move a section's result, and of a comparison its answers and report, into its `previous` folder, the result last.

    Returns a sentence on where it lies. Interrupted in between, the section still counts as finished, and the rest is
    moved the next time.
    """
    previous, done = folder / PREVIOUS, (folder / RESULT).exists()
    moved = [folder / "after.json"]
    if isinstance(config, CompareConfig):
        reports = [folder.parent / f"report.{kind}" for kind in ("json", "html")]
        moved = [*reports, folder / "before.json", *moved, folder / CONFIG, folder / RECORD]
    with writing(previous):
        previous.mkdir(parents=True, exist_ok=True)
        for path in (*moved, folder / RESULT):
            if path.exists():
                os.replace(path, previous / path.name)
    return f" Its last result lies in {previous}." if done else ""
