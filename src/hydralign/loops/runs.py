"""Recipes and their output folders: which sections are done, what comes next, what a run would do.

OUT/recipe.yaml           the resolved recipe; another one is refused
OUT/<section>/            what the section writes; it is finished when its last file is there
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from hydralign.config import Recipe, describe, diff, dump_recipe, load_recipe
from hydralign.errors import ConfigError, RunFolderError, did_you_mean
from hydralign.evaluation.statistics import Difference
from hydralign.loops.ppo import sampling_plan
from hydralign.loops.ppo_run import RESULT, load_parts, prompt_preview, required_section, run_ppo
from hydralign.models.policy import Policy
from hydralign.processes import Processes, launched_processes
from hydralign.progress import say

SECTIONS: dict[str, Callable[[Recipe, Path, Processes], list[Difference]]] = {"ppo": run_ppo}
"""Loops by section, in the order in which a recipe runs them."""


def run_recipe(recipe: Recipe) -> None:
    """Run every section that the recipe has, in order, going on at the first unfinished one."""
    present = [name for name in SECTIONS if getattr(recipe, name) is not None]
    if not present:
        raise ConfigError(
            f"The recipe has none of the sections {', '.join(SECTIONS)}: there is nothing to run. Add one."
        )
    for name in present:
        run_section(recipe, name)


def run_section(recipe: Recipe, name: str) -> list[Difference]:
    """Run one section into its folder, unless it is finished there already (said so; returns nothing then)."""
    if name not in SECTIONS:
        raise ConfigError(f"There is no section {name!r} to run. {did_you_mean(name, SECTIONS)}")
    disable_progress_bar()
    processes = launched_processes()
    output = Path(recipe.output).expanduser()
    folder = output / name
    if processes.main:
        claim_folder(output, recipe)
    processes.wait()
    if (folder / RESULT).exists():
        if processes.main:
            say(f"{name} is finished: see {folder}. Delete that folder, or name another output, to run it again.")
        return []
    if processes.main:
        say(describe(recipe, processes=processes.count))
    return SECTIONS[name](recipe, folder, processes)


def claim_folder(output: Path, recipe: Recipe) -> None:
    """Store the recipe in its output folder; RunFolderError when a file or another recipe's results are there."""
    if output.exists() and not output.is_dir():
        raise RunFolderError(f"output={str(output)!r} is a file: results need a folder. Name another.")
    stored = output / "recipe.yaml"
    # A recipe that stopped before any section wrote something has no results that could be mixed up.
    if stored.exists() and any((output / name).exists() for name in SECTIONS):
        differences = diff(load_recipe(stored), recipe)
        if differences:
            listed = "\n  ".join(["", *differences[:12]])
            raise RunFolderError(
                f"output={str(output)!r} holds the results of another recipe, and going on would mix two runs. They "
                f"differ in (there ≠ here):{listed}\nName another output, or delete that folder."
            )
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        partial = output / ".recipe.yaml.partial"
        partial.write_text(dump_recipe(recipe), encoding="utf-8")
        partial.rename(stored)
    except OSError as error:
        raise RunFolderError(
            f"output={str(output)!r} cannot be written ({error.strerror}): results would be lost. Name another folder."
        ) from error


def plan(recipe: Recipe) -> str:
    """What a run would do: settings, batch arithmetic, data, parameters, memory, one prompt. Writes nothing."""
    disable_progress_bar()
    config = required_section(recipe)
    processes = launched_processes()
    loaded = load_parts(recipe, processes)
    sampling = sampling_plan(config.sampling, recipe.seed)
    source = recipe.data.prompts
    assert source is not None
    return "\n".join(
        [
            describe(recipe, processes=processes.count),
            "",
            loaded.prompts.report.describe(),
            f"proof      {len(loaded.held_out)} held-out prompts, answered before and after",
            *size_lines(loaded.policy),
            f"answers    up to {sampling.longest} tokens; context {loaded.policy.context}",
            f"prompt     {prompt_preview(loaded.prompts.train[0], source)}",
        ]
    )


def size_lines(policy: Policy) -> list[str]:
    """Parameter counts, and the memory in MB that lasts throughout a run: weights, gradients, AdamW's two moments."""
    trained, fixed = list(policy.trained().values()), policy.fixed()
    head = sum(p.numel() for name, p in policy.trained().items() if name.startswith("value_head."))
    counts = [sum(p.numel() for p in parameters) for parameters in (trained, fixed)]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    weights = gradients + sum(p.numel() * p.element_size() for p in fixed)
    parts = {"weights": weights, "gradients": gradients, "optimizer": 2 * gradients}
    told = ", ".join(f"{name} {size / 2**20:,.1f} MB" for name, size in parts.items())
    return [
        f"parameters {counts[0]:,} trained ({head:,} of them in the value head), {counts[1]:,} frozen",
        f"memory     {told}: {sum(parts.values()) / 2**20:,.1f} MB in all; activations and caches come on top",
    ]
