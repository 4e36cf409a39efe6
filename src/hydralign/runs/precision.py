"""The precision in which a section runs: the recipe's, or what `auto` stands for on this machine.

The recipe in the output folder keeps `auto`; a section's own config.yaml holds what was chosen when it began, and that
stays when the section goes on, on another machine too: half a run in each precision would be neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from hydralign.config import Config, Recipe
from hydralign.distributed import Distributed
from hydralign.models import bf16_speed as measuring
from hydralign.models.bf16_speed import Precision, describe_speed, faster_precision
from hydralign.runs.section_files import read_stored_config
from hydralign.runs.steps import Step

C = TypeVar("C", bound=Config)


def resolve_precision(recipe: Recipe, step: Step, processes: Distributed) -> tuple[Recipe, Step, str | None]:
    """The recipe and the step with fp32 or bf16 in place of `auto`, the same on every process, and a line.

    The line says what `auto` became, or that the bf16 that was asked for is slow here; None where there is nothing to
    say, and on other processes than the main one.
    """
    chosen, line = processes.raise_together(
        lambda: choose_precision(recipe, step, processes.device.type) if processes.main else ("fp32", None)
    )
    rounded = processes.any(chosen == "bf16")
    value: Precision = "bf16" if rounded else "fp32"
    used = with_precision(recipe, value) if recipe.model.precision == "auto" else recipe
    return used, replace(step, config=with_precision(step.config, value)), line


def choose_precision(recipe: Recipe, step: Step, device: str) -> tuple[Precision, str | None]:
    """The precision in which the step runs, and a line about it where there is one to say."""
    asked = precision_of(step.config) or recipe.model.precision
    if asked == "fp32":
        return asked, None
    speed = measuring.bf16_speed(device)
    found = describe_speed(speed)
    if asked == "bf16":
        slow = f"precision bf16, as the recipe says, is slow here: {found}. With auto or fp32 it would be faster."
        return asked, slow if speed < 1 else None
    here = faster_precision(speed)
    stored = read_stored_config(type(step.config), step.folder)
    began = stored and precision_of(stored)
    if began in (None, "auto", here):
        return here, f"precision auto is {here}: {found}"
    return began, f"precision auto stays {began}, in which this section began; anew it would be {here}: {found}"


def same_precision(stored: C, wanted: C) -> C:
    """`stored`, with the wanted precision where one of the two is `auto`, which stands for either."""
    asked = precision_of(stored), precision_of(wanted)
    if "auto" in asked and None not in asked:
        return with_precision(stored, precision_of(wanted))
    return stored


def precision_of(config: Config) -> Any:
    """The precision that a recipe or section asks for; None where it has no model of its own."""
    return getattr(_precise_part(config), "precision", None)


def with_precision(config: C, precision: str | None) -> C:
    """The config in another precision; as it is where it has no model of its own."""
    part = _precise_part(config)
    changed = part and part.model_copy(update={"precision": precision})
    return changed if part is config else config.model_copy(update={"model": changed})


def _precise_part(config: Any) -> Any:
    """What says the precision: the config itself, or its model, None where it has none of its own."""
    return config if hasattr(config, "precision") else config.model
