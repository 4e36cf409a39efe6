"""The precision in which a section runs: the recipe's, or what `auto` stands for on this machine.

The recipe in the output folder keeps `auto`; a section's own config.yaml holds what was chosen when it began, and that
stays when the section goes on, on another machine too: half a run in each precision would be neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from hydralign.config import Config, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.loading import load_config
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError
from hydralign.models import bf16_speed as measuring
from hydralign.models.bf16_speed import Precision, describe_speed, faster_precision

C = TypeVar("C", bound=Config)


def resolve_precision(recipe: Recipe, config: C, folder: Path, processes: Distributed) -> tuple[Recipe, C, str | None]:
    """The recipe and the section's config with fp32 or bf16 in place of `auto`, the same on every process, and a line.

    The line tells what `auto` became, or that the bf16 that was asked for is slow here; None where nothing is to be
    told, and on other processes than the main one.
    """
    chosen, line = processes.raise_together(
        lambda: choose_precision(recipe, config, folder, processes.device.type) if processes.main else ("fp32", None)
    )
    rounded = processes.any(chosen == "bf16")
    value: Precision = "bf16" if rounded else "fp32"
    model = recipe.model.model_copy(update={"precision": value}) if recipe.model.precision == "auto" else recipe.model
    return recipe.model_copy(update={"model": model}), with_precision(config, value), line


def choose_precision(recipe: Recipe, config: Config, folder: Path, device: str) -> tuple[Precision, str | None]:
    """The precision of a section whose results lie in `folder`, and a line about it where there is one to say."""
    asked = precision_of(config) or recipe.model.precision
    if asked == "fp32":
        return asked, None
    speed = measuring.bf16_speed(device)
    found = describe_speed(speed)
    if asked == "bf16":
        slow = f"precision bf16, as the recipe says, is slow here: {found}. With auto or fp32 it would be faster."
        return asked, slow if speed < 1 else None
    here = faster_precision(speed)
    began = _began_with(config, folder)
    if began is None or began == here:
        return here, f"precision auto is {here}: {found}"
    return began, f"precision auto stays {began}, in which this section began; anew it would be {here}: {found}"


def _began_with(config: Config, folder: Path) -> Precision | None:
    own = folder / "config.yaml"
    try:
        began = precision_of(load_config(type(config), own)) if own.exists() else None
    except ConfigError:  # a damaged one tells nothing, and is written anew
        began = None
    return None if began == "auto" else began


def same_precision(stored: C, wanted: C) -> C:
    """`stored`, with the wanted precision where one of the two is `auto`, which stands for either."""
    asked = precision_of(stored), precision_of(wanted)
    if "auto" in asked and None not in asked:
        return with_precision(stored, precision_of(wanted))
    return stored


def precision_of(config: Any) -> Any:
    """The precision that a recipe or section asks for; None where it has no model of its own."""
    return config.precision if isinstance(config, CompareConfig) else config.model and config.model.precision


def with_precision(config: C, precision: str | None) -> C:
    """The config in another precision; as it is where it has no model of its own."""
    if isinstance(config, CompareConfig):
        return config.model_copy(update={"precision": precision})
    model = getattr(config, "model", None)
    return config.model_copy(update={"model": model.model_copy(update={"precision": precision})}) if model else config
