"""Recipes and their output folders: which sections are done, what comes next, what a run would do.

OUT/recipe.yaml           the resolved recipe; another one is refused
OUT/<section>/            what the section writes; it is finished when its last file is there
OUT/<section>/<name>/     the same, of sections that are lists
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from hydralign.config import Recipe, describe, diff, dump_recipe, load_recipe, resolved_recipe
from hydralign.config.paths import require_usable_paths
from hydralign.data.table_cache import cached_tables
from hydralign.distributed import Distributed, launched_processes
from hydralign.errors import ConfigError, RunFolderError, did_you_mean
from hydralign.evaluation.statistics import Difference
from hydralign.files import delete, write_text
from hydralign.progress import say
from hydralign.runs.kinds import SECTIONS, all_steps
from hydralign.runs.lock import locked
from hydralign.runs.output_checks import check_output
from hydralign.runs.plans import later_lines
from hydralign.runs.precision import choose_precision, resolve_precision, same_precision
from hydralign.runs.preflight import check_steps
from hydralign.runs.same_settings import comparable
from hydralign.runs.section_files import RESULT, read_result
from hydralign.runs.standing import (
    Standing,
    growth,
    has_results,
    move_aside,
    outputs_read,
    refuse_stale,
    standing,
    stored_config,
)
from hydralign.runs.steps import Step
from hydralign.streams import lasting_output
from hydralign.training.checkpoints import naming_newest_checkpoint


@dataclass(frozen=True)
class RunResult:
    """What came out, by section: `sft`, `reward` (or `reward/NAME` where it is a list), `ppo`, `compare`."""

    output: Path
    """The recipe's output folder; the models lie in OUT/<section>/model."""
    records: Mapping[str, Mapping[str, Any]]
    """Each section's evaluation.json: metrics with interval, n and verdict."""
    differences: Mapping[str, tuple[Difference, ...]]
    """Paired differences by section; none of one that was finished before, whose record has the same numbers."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every difference that was measured now, in a sentence."""
        return tuple(difference.sentence() for differences in self.differences.values() for difference in differences)

    @property
    def report(self) -> Path | None:
        """The page that the compare section wrote; None without one."""
        page = self.output / "report.html"
        return page if "compare" in self.records and page.exists() else None


def run_recipe(recipe: Recipe | str | os.PathLike[str]) -> RunResult:
    """Run every section that the recipe (or the recipe in that file) has, going on at the first unfinished one.

    Raises RunFolderError when another process runs in the same output folder.
    """
    recipe = resolved_recipe(recipe)
    output, names, processes = Path(recipe.output).expanduser(), present_sections(recipe), launched_processes()
    check_before(recipe, names, processes)
    with locked_output(output, processes):
        for line in processes.raise_together(lambda: _precision_lines(recipe, processes)):
            say(line)
        differences = {
            name: tuple(_run_items(recipe, name, tell_settings=True, tell_precision=False)) for name in names
        }
    done = [step for step in all_steps(recipe) if (step.folder / RESULT).exists()]
    return RunResult(output, {step.title: read_result(step.folder) for step in done}, differences)


def _precision_lines(recipe: Recipe, processes: Distributed) -> list[str]:
    """What is to be said of the precision of unfinished sections before the first one runs; nothing on other ranks."""
    titles: dict[str, list[str]] = {}
    for item in (item for item in all_steps(recipe) if processes.main):
        if standing(recipe, item).state != "finished":
            line = choose_precision(recipe, item, processes.device.type)[1]
            titles.setdefault(line or "", []).append(item.title)
    return [f"{', '.join(group)}: {line}" for line, group in titles.items() if line]


@contextmanager
def locked_output(output: Path, processes: Distributed) -> Iterator[None]:
    """Hold the output folder, locked by the main process, with output that cannot end the run."""
    with lasting_output(), ExitStack() as held:
        processes.raise_together(lambda: held.enter_context(locked(output)) if processes.main else None)
        yield


def present_sections(recipe: Recipe) -> list[str]:
    """The sections that the recipe has, in the order in which they run. Raises ConfigError when there is none."""
    present = [name for name, section in SECTIONS.items() if section.steps(recipe)]
    if not present:
        raise ConfigError(
            f"The recipe has none of the sections {', '.join(SECTIONS)}: there is nothing to run. Add one."
        )
    return present


def run_section(recipe: Recipe | str | os.PathLike[str], name: str, *, tell_settings: bool = True) -> list[Difference]:
    """Run one section into its folder, unless it is finished there already (said so; returns nothing then)."""
    recipe = resolved_recipe(recipe)
    check_before(recipe, [name], launched_processes())
    return _run_items(recipe, name, tell_settings=tell_settings, tell_precision=True)


def _run_items(recipe: Recipe, name: str, *, tell_settings: bool, tell_precision: bool) -> list[Difference]:
    items = required_items(recipe, name)
    disable_progress_bar()
    processes = launched_processes()
    output = Path(recipe.output).expanduser()
    differences = []
    with locked_output(output, processes):
        if processes.main:
            claim_folder(output, recipe)
        processes.barrier()
        for item in items:
            used, step, line = resolve_precision(recipe, item, processes)
            if not clear_outdated(used, step, processes):
                continue
            if line and tell_precision:
                say(f"{step.title}: {line}")
            if processes.main and tell_settings:
                say(describe_item(used, step, processes))
            with naming_newest_checkpoint(step.folder / "checkpoints") if step.section.trains else nullcontext():
                differences += step.section.run(used, step, processes)
            if processes.main:
                claim_folder(output, recipe)  # the section stored the recipe in the precision that it ran in
    return differences


def clear_outdated(recipe: Recipe, item: Step, processes: Distributed) -> bool:
    """Move an outdated result of the item out of the way; returns whether the item is to be run. Says what it finds.

    Raises RunFolderError when its inputs changed since it was trained, or are not there yet.
    """

    def check() -> Standing | None:
        if not processes.main:
            return None
        found = standing(recipe, item)
        if found.state == "stale" and item.section.trains:
            trained = [one for one in all_steps(recipe) if one.section.trains and has_results(one.folder)]
            refuse_stale(recipe, item, found.changed, trained)
        if found.state != "finished":
            require_made(recipe, item)
        if found.state == "finished":
            say(f"{item.title} is {found.description}: see {item.folder}. To run it again, delete that folder.")
        elif found.state in ("stale", "longer"):
            say(f"{item.title} is {found.description}.{move_aside(item)}")
        elif found.state == "reworded":
            say(f"{item.title} is {found.description}.")
            delete(item.folder / RESULT)
        return found

    found = processes.raise_together(check)
    return not processes.any(found is not None and found.state == "finished")


def check_before(recipe: Recipe, names: Sequence[str], processes: Distributed, *, dry: bool = False) -> None:
    """Refuse what can be refused before anything is written, in every unfinished item of these sections.

    `dry` allows models that a section outside of `names` has yet to make. Raises the error that the run would end with.
    """
    items = [item for name in names for item in required_items(recipe, name)]
    require_usable_paths(recipe)
    check_output(recipe, [item.title for item in items])
    wanted = [item for item in items if standing(recipe, item).state != "finished"]
    require_same_recipe(Path(recipe.output).expanduser(), recipe)
    for item in () if dry else wanted:
        require_made(recipe, item, besides=names)
    if wanted and processes.main:
        say(f"checking settings, data and models of {', '.join(item.title for item in wanted)} …")
    check_steps(recipe, all_steps(recipe), [item.title for item in wanted], processes)


def required_items(recipe: Recipe, name: str) -> list[Step]:
    """The section's items. Raises ConfigError when there is no such section, or the recipe lacks it."""
    if name not in SECTIONS:
        raise ConfigError(f"There is no section {name!r} to run. {did_you_mean(name, SECTIONS)}")
    items = SECTIONS[name].steps(recipe)
    if not items:
        raise ConfigError(f"The recipe has no `{name}` section: there is nothing to run. Add one.")
    return items


def describe_item(recipe: Recipe, item: Step, processes: Distributed) -> str:
    """The settings that the item uses: the recipe's own, the kinds of data that it reads, and its section's."""
    others = {name: None for name in SECTIONS if name != item.section.name}
    unread = {kind: None for kind in type(recipe.data).model_fields if f"data.{kind}" not in item.reads(recipe)}
    used = {**others, item.section.name: item.config, "data": recipe.data.model_copy(update=unread)}
    return describe(recipe.model_copy(update=used), processes=processes.count)


def require_made(recipe: Recipe, item: Step, *, besides: Sequence[str] = ()) -> None:
    """Raise RunFolderError when the item needs something out of this recipe's output that is not there yet.

    What the sections `besides` make does not count.
    """
    for path in missing_inputs(recipe, item):
        maker = path.relative_to(Path(recipe.output).expanduser()).parts[0]
        if maker in besides or maker not in SECTIONS:
            continue
        raise RunFolderError(
            f"{item.title} needs {path}, which is not there: the {maker} section makes it. Run `hydralign run`, which "
            f"runs every section in order, or `hydralign {maker}` first."
        )


def missing_inputs(recipe: Recipe, item: Step) -> list[Path]:
    """Paths inside the output folder that the item's settings name and that do not exist."""
    return [path for path in outputs_read(recipe, item) if not path.exists()]


def claim_folder(output: Path, recipe: Recipe) -> None:
    """Store the recipe in an output folder that has results. Raises as `require_same_recipe` does, StorageError.

    With nothing made yet, the first section that begins writes it: a start that fails leaves nothing in the way.
    """
    require_same_recipe(output, recipe)
    if _steps_with_results(recipe, output):
        write_text(output / "recipe.yaml", dump_recipe(recipe))


def require_same_recipe(output: Path, recipe: Recipe) -> None:
    """Raise RunFolderError when the output holds another recipe's results or a recipe of the user's own.

    A recipe without results beside it may be replaced if a run wrote it.
    """
    stored = output / "recipe.yaml"
    if not stored.exists():
        return
    try:
        before = load_recipe(stored, notify=False)
    except ConfigError as error:
        raise RunFolderError(
            f"{stored} cannot be read, so whether this recipe made what lies beside it is not known: {error}\n"
            f"Delete {stored} if it did, and it is written again; else name another output."
        ) from error
    # A run writes every section down, absent ones as null; nobody does by hand.
    keys = re.findall(r"^(\w+):", stored.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not _steps_with_results(before, output) and not {"seed", *SECTIONS} <= set(keys):
        raise RunFolderError(
            f"output={str(output)!r} holds a recipe.yaml that no run wrote: it would be replaced by the resolved one. "
            "Name a folder of its own for results, or keep that recipe elsewhere."
        )
    differences = conflicts(before, recipe, output)
    if differences:
        listed = "\n  ".join(["", *differences[:12]])
        made = list(_steps_with_results(before, output) | _steps_with_results(recipe, output))
        differing = [title for title in made if any(line.startswith(f"{title}.") for line in differences)]
        folders = ", ".join(str(output / title) for title in differing or made)
        raise RunFolderError(
            f"output={str(output)!r} holds the results of another recipe, and going on would mix two runs. They "
            f"differ in (there ≠ here):{listed}\nName another output, or delete what was made with the other settings: "
            f"{folders}."
        )


def conflicts(stored: Recipe, recipe: Recipe, output: Path) -> list[str]:
    """Settings that results in the folder were made with and that are others now; none without such results.

    Sections without results, and data that no section with results reads, may be added or changed; so may what changes
    no result, and the folder's name. A section that has a checkpoint may be trained longer. Precision `auto` is
    whatever a section was made in.
    """
    stored = same_precision(stored, recipe)
    made, wanted = (_steps_with_results(one, output) for one in (stored, recipe))
    if not made and not wanted:
        return []
    no_sections: dict[str, Any] = dict.fromkeys(SECTIONS)
    old, new = (comparable(one, one.output).model_copy(update=no_sections) for one in (stored, recipe))
    read = {key for step in made.values() for key in step.reads(stored)}
    read |= {key for step in wanted.values() for key in step.reads(recipe)}
    free = {
        kind: getattr(new.data, kind)
        for kind in type(old.data).model_fields
        if f"data.{kind}" not in read or getattr(old.data, kind) is None
    }
    differences = diff(old.model_copy(update={"data": old.data.model_copy(update=free)}), new)
    for title, step in wanted.items():
        # The stored recipe may have been without the section for a while; its own folder says what made it.
        before = stored_config(stored, step) or comparable(made.get(title, step).config, stored.output)
        before = same_precision(before, step.config)
        if longer := growth(stored, step):
            before = before.model_copy(update={longer[0]: longer[2]})
        differences += [f"{title}.{line}" for line in diff(before, comparable(step.config, recipe.output))]
    return differences


def _steps_with_results(recipe: Recipe, output: Path) -> dict[str, Step]:
    """By title, those of the recipe's steps that have results in this output folder."""
    return {step.title: step for step in all_steps(recipe) if has_results(output / step.title)}


@cached_tables()
def plan(recipe: Recipe, section: str | None = None) -> str:
    """What a run of one section, or of all, would do: settings, data, parameters, memory, a sample. Writes nothing."""
    disable_progress_bar()
    processes = launched_processes()
    names = [section] if section else present_sections(recipe)
    check_before(recipe, names, processes, dry=True)
    parts = []
    for item in (item for name in names for item in required_items(recipe, name)):
        missing = missing_inputs(recipe, item)
        used, step, line = resolve_precision(recipe, item, processes)
        if missing:
            lines = later_lines(used, step, missing, all_steps(used))
        else:
            lines = step.section.plan(used, step.config, processes)
        notes = [f"precision  {line.removeprefix('precision ')}"] if line else []
        heading = f"{step.title} is {standing(used, step).description}."
        parts.append("\n".join([heading, describe_item(used, step, processes), "", *notes, *lines]))
    return "\n\n".join(parts)
