"""The kinds of section: one list for recipe, commands and order."""

from __future__ import annotations

from hydralign.cli import _COMMANDS
from hydralign.config import read_config
from hydralign.config.data import DataConfig
from hydralign.config.recipe import Recipe
from hydralign.runs.kinds import SECTIONS, all_steps
from hydralign.runs.same_settings import comparable_values


def test_sections_of_recipe_commands_and_kinds_are_the_same_in_order() -> None:
    fields = [name for name in Recipe.model_fields if name not in ("output", "seed", "model", "data")]
    assert list(SECTIONS) == fields == [name for name in _COMMANDS if name != "run"]


def test_every_kind_of_data_is_read_by_a_section_that_has_none_of_its_own() -> None:
    items = [{"name": "pairs"}, {"name": "labels", "task": {"type": "labels"}}, {"name": "x", "data": {"source": "x"}}]
    values = {"sft": {}, "reward": items, "ppo": {"rewards": [{"type": "model", "path": "r"}]}, "compare": {}}
    recipe = read_config(Recipe, {"output": "out", "model": {"path": "m"}, **values})
    reads = {step.title: list(step.reads(recipe)) for step in all_steps(recipe)}
    assert reads == {
        "sft": ["data.demonstrations"],
        "reward/pairs": ["data.comparisons"],
        "reward/labels": ["data.labelled"],
        "reward/x": [],
        "ppo": ["data.prompts"],
        "compare": ["data.prompts", "ppo.rewards", "ppo.sampling"],
    }
    assert {key for keys in reads.values() for key in keys} >= {f"data.{kind}" for kind in DataConfig.model_fields}


def test_settings_of_wording_change_no_result() -> None:
    wordings = {name: section.wording for name, section in SECTIONS.items() if section.wording}
    assert wordings == {"compare": ("title", "notes")}
    assert [comparable_values(dict.fromkeys(names), "out") for names in wordings.values()] == [{}]


def test_sections_that_train_make_a_model_and_can_be_trained_longer() -> None:
    assert {name for name, one in SECTIONS.items() if one.trains} == {"sft", "reward", "ppo"}
    assert all(one.trains == (one.grows_by is not None) for one in SECTIONS.values())
