"""The kinds of section that a recipe may have, as objects, and a recipe as a list of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydralign.config import Recipe
from hydralign.distributed import Distributed
from hydralign.evaluation.statistics import Difference

if TYPE_CHECKING:
    from hydralign.runs.model_facts import ModelSource


@dataclass(frozen=True)
class Section:
    """One kind of section: what it reads, what it would do, what runs it."""

    name: str
    """Its key in the recipe, and its command."""
    data: tuple[str, ...]
    """Kinds of data that it reads."""
    check: Callable[[Recipe, Any, ModelSource, Distributed], None]
    """Raises what can be refused before anything runs."""
    plan: Callable[[Recipe, Any, Distributed], list[str]]
    """Tells beforehand, in lines, what a run would do."""
    run: Callable[[Recipe, Any, Path, Distributed], list[Difference]]
    """Runs it into its folder; what it makes lies in `model/` there."""

    def steps(self, recipe: Recipe) -> list[Step]:
        """The section's steps in order, one for each item where it is a list; none when the recipe lacks it."""
        value = getattr(recipe, self.name)
        if isinstance(value, tuple):
            return [Step(self, f"{self.name}/{config.name}", config) for config in value]
        return [] if value is None else [Step(self, self.name, value)]


@dataclass(frozen=True)
class Step:
    """One section of a recipe, or one item of a section that is a list."""

    section: Section
    title: str
    """Where it stands in the recipe and under the output folder: reward, or reward/classifier."""
    config: Any
