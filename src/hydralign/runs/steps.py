"""The kinds of section that a recipe may have, as objects, and a recipe as a list of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    reads: Callable[[Recipe, Any], Sequence[str]]
    """Dotted keys of the settings outside of the section that its result depends on, besides the seed."""
    check: Callable[[Recipe, Any, ModelSource, Distributed], None]
    """Raises what can be refused before anything runs."""
    plan: Callable[[Recipe, Any, Distributed], list[str]]
    """Describes beforehand, in lines, what a run would do."""
    run: Callable[[Recipe, Step, Distributed], list[Difference]]
    """Runs a step of it into its folder; the model that it trains is saved in `model/` there."""
    makes: Literal["language model", "classifier"] | None = None
    """What kind of model it trains; None of one that trains nothing, whose result can be measured again."""
    grows_by: str | None = None
    """The setting that says how long it trains."""
    wording: tuple[str, ...] = ()
    """Settings that change the words of its report alone."""
    reports: tuple[str, ...] = ()
    """Files that it writes at the top of the output folder."""

    @property
    def trains(self) -> bool:
        """Whether hours may lie in its result."""
        return self.makes is not None

    def steps(self, recipe: Recipe) -> list[Step]:
        """The section's steps in order, one for each item where it is a list; none when the recipe lacks it."""
        value = getattr(recipe, self.name)
        items = {f"{self.name}/{item.name}": item for item in value} if isinstance(value, tuple) else {self.name: value}
        output = Path(recipe.output).expanduser()
        return [Step(self, title, item, output / title) for title, item in items.items() if item is not None]


@dataclass(frozen=True)
class Step:
    """One section of a recipe, or one item of a section that is a list."""

    section: Section
    title: str
    """Where it stands in the recipe and under the output folder: reward, or reward/classifier."""
    config: Any
    folder: Path
    """Where its results lie."""

    def reads(self, recipe: Recipe) -> Sequence[str]:
        """Dotted keys of the settings outside of its config that its result depends on, besides the seed."""
        return self.section.reads(recipe, self.config)
