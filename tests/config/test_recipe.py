"""What a section starts from when another one came before it: whose path, whose form."""

from __future__ import annotations

from typing import Any

import pytest

from hydralign.config import Recipe, read_config
from hydralign.config.model import HydraForm, LoraForm, ModelConfig
from hydralign.errors import ConfigError

LORA, HYDRA = {"type": "lora", "rank": 8}, {"type": "hydra", "unfrozen_layers": 1}
MADE = "out/sft/model"


def resolved(model: dict[str, Any], sft: dict[str, Any] | list[dict[str, Any]], **sections: Any) -> Recipe:
    ppo = {"rewards": [{"type": "function", "function": "module:score"}]}
    values = {"output": "out", "model": {"path": "base", **model}, "sft": sft, "reward": {}, "ppo": ppo, "compare": {}}
    return read_config(Recipe, {**values, **sections}).resolved()


def start_of(recipe: Recipe) -> ModelConfig:
    assert recipe.ppo is not None
    assert recipe.ppo.model is not None
    return recipe.ppo.model


def test_openings_are_not_learned_from_texts_that_prompts_hold_out() -> None:
    source = {"source": ["a.jsonl", "b.jsonl"], "cut": {}}
    data: dict[str, Any] = {"prompts": source, "demonstrations": source | {"source": "b.jsonl"}}
    with pytest.raises(ConfigError, match="cut out of the same texts.*of: text"):
        resolved({}, {}, data=data)
    data["prompts"] = source | {"held_out": {"by": "hash", "of": "text"}}
    resolved({}, {}, data=data)
    with pytest.raises(ConfigError, match="cut out of the same texts.*of: text"):
        resolved({}, {"data": source}, data={"prompts": source})
    resolved({}, {"data": source | {"source": "c.jsonl"}}, data={"prompts": source})


@pytest.mark.parametrize("form", [HYDRA, {"type": "full"}])
def test_ppo_in_another_form_starts_from_the_adapter_that_sft_made(form: dict[str, Any]) -> None:
    recipe = resolved({"form": form}, {"model": {"path": "base", "form": LORA}})
    start = start_of(recipe)
    assert (start.path, start.form) == (MADE, recipe.model.form)
    assert recipe.compare is not None
    assert recipe.compare.before == MADE
    assert recipe.ppo is not None
    assert recipe.ppo.optimizer.learning_rate == 3e-6
    assert recipe.resolved() == recipe


def test_ppo_takes_the_recipes_precision_with_its_form_and_the_pad_token_of_either() -> None:
    model = {"form": HYDRA | {"states": "bf16"}, "precision": "bf16"}
    start = start_of(resolved(model, {"model": {"path": "base", "form": LORA, "pad_token": "<pad>"}}))
    assert (start.precision, start.pad_token) == ("bf16", "<pad>")
    again = start_of(resolved({"pad_token": "<pad>"}, {"model": {"path": "base", "form": LORA}}))
    assert (again.precision, again.pad_token) == ("auto", "<pad>")


def test_ppo_goes_on_with_the_adapter_of_sft_where_both_are_lora() -> None:
    inherited = start_of(resolved({"form": LORA}, {}))
    assert inherited.path == "base"
    assert inherited.form == LoraForm(rank=8, adapter=MADE)
    own = start_of(
        resolved({"form": LORA | {"unfrozen_layers": 1}}, {"model": {"path": "other", "form": LORA | {"rank": 4}}})
    )
    assert own.path == "other"
    assert own.form == LoraForm(rank=4, unfrozen_layers=1, adapter=MADE)


def test_ppo_puts_fresh_adapters_on_what_sft_trained_whole() -> None:
    start = start_of(resolved({"form": LORA}, {"model": {"path": "base"}}))
    assert (start.path, start.form) == (MADE, LoraForm(rank=8))


def test_reward_starts_where_ppo_does_and_a_model_of_its_own_comes_first() -> None:
    recipe = resolved({"form": HYDRA}, {"model": {"path": "base", "form": LORA}})
    assert not isinstance(recipe.reward, tuple | None)
    assert recipe.reward.model is not None
    assert (recipe.reward.model.path, recipe.reward.model.form) == (MADE, HydraForm(unfrozen_layers=1))
    ppo = {"rewards": [{"type": "function", "function": "module:score"}], "model": {"path": MADE, "form": HYDRA}}
    assert start_of(resolved({"form": LORA}, {}, ppo=ppo)).form == HydraForm(unfrozen_layers=1)


@pytest.mark.parametrize("section", ["sft", "reward"])
def test_list_of_sections_without_one_is_refused(section: str) -> None:
    with pytest.raises(ConfigError, match=f"{section} is an empty list: .* Name at least one, or leave {section} out"):
        read_config(Recipe, {"output": "out", "model": {"path": "base"}, section: []})
