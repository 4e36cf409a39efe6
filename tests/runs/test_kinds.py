"""The kinds of section: one list for recipe, commands and order."""

from __future__ import annotations

from hydralign.cli import _COMMANDS
from hydralign.config.data import DataConfig
from hydralign.config.recipe import Recipe
from hydralign.runs.kinds import SECTIONS


def test_sections_of_recipe_commands_and_kinds_are_the_same_in_order() -> None:
    fields = [name for name in Recipe.model_fields if name not in ("output", "seed", "model", "data")]
    assert list(SECTIONS) == fields == [name for name in _COMMANDS if name != "run"]
    kinds = {kind for section in SECTIONS.values() for kind in section.data}
    assert kinds == set(DataConfig.model_fields)
