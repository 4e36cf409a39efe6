"""The printed config shows every setting, marks what was changed, and multiplies the batch numbers out."""

from __future__ import annotations

import re

from hydralign.config import Config, PPOConfig, Recipe, batch_arithmetic, describe, diff

BASE: dict[str, object] = {
    "output": "runs/x",
    "model": {"path": "tiny"},
    "ppo": {"rewards": [{"type": "function", "function": "module:score"}]},
}


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**BASE, **changes})


def leaves(config: Config) -> list[str]:
    names: list[str] = []
    for field in type(config).model_fields:
        value = getattr(config, field)
        items = value if isinstance(value, tuple) else (value,)
        inner = [item for item in items if isinstance(item, Config)]
        names += [name for item in inner for name in leaves(item)] if inner else [field]
    return names


def line(text: str, group: str) -> str:
    return " ".join(next(line for line in text.splitlines() if line.split()[0] == group).split())


def test_describe_shows_every_setting() -> None:
    config = recipe()
    words = re.findall(r"[\w*.]+", describe(config))
    absent = [name for name in ("sft", "reward", "ppo", "compare") if getattr(config, name) is None]
    for name in (name for name in leaves(config) if name not in absent):
        assert words.count(name) + words.count(f"{name}*") >= leaves(config).count(name)


def test_describe_is_silent_on_sections_that_the_recipe_lacks() -> None:
    text = describe(recipe(sft={}, ppo=None))
    assert line(text, "sft")
    assert not any(f"{name} none" in text for name in ("reward", "ppo", "compare"))


def test_describe_marks_what_differs_and_shows_its_default() -> None:
    ppo = {"steps": 20, "rewards": [{"type": "function", "function": "module:score", "weight": 2}]}
    text = describe(recipe(ppo=ppo))
    assert line(text, "ppo").startswith("ppo steps* 20 (100) model none trackers []")
    assert "weight* 2.0 (1.0)" in line(text, "ppo.rewards.0")
    assert text.count("*") == 3  # these two and model.path


def test_describe_marks_nothing_when_a_setting_is_given_its_default() -> None:
    rewards = [{"type": "function", "function": "module:score"}]
    assert describe(recipe(ppo={"rewards": rewards, "steps": 100, "kl": {"coefficient": 0.05}})) == describe(recipe())


def test_describe_compares_a_tagged_group_with_its_own_kind() -> None:
    text = describe(recipe(model={"path": "tiny", "form": {"type": "lora", "rank": 8}}))
    assert (
        line(text, "model.form")
        == "model.form type* lora (full) rank* 8 (16) alpha 32.0 targets none adapter none unfrozen_layers none"
    )


def test_describe_keeps_lines_within_the_width_and_names_each_group_once() -> None:
    text = describe(recipe())
    assert max(len(line) for line in text.splitlines()) <= 120
    names = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert len(set(names) - {"ppo"}) >= len(names) - 2
    assert {"recipe", "model", "model.form", "ppo.batch", "ppo.kl.controller", "ppo.rewards.0"} <= set(names)


def test_describe_leaves_the_batch_arithmetic_out_without_ppo() -> None:
    assert "batches" in describe(recipe())
    assert "batches" not in describe(recipe(ppo=None))


def test_batch_arithmetic_multiplies_out() -> None:
    ppo = recipe().ppo
    assert ppo is not None
    assert batch_arithmetic(ppo, processes=2) == [
        "64 answers = 64 prompts × 1",
        "4 epochs × 4 minibatches of 16 rows = 16 optimizer steps per iteration",
        "2 processes × 8 rows per optimizer step",
        "micro-batches of 8 rows",
        "100 iterations = 6,400 answers, 1,600 optimizer steps",
    ]


def test_batch_arithmetic_says_at_most_when_processes_do_not_divide_the_rows() -> None:
    values = {"rows": 24, "samples_per_prompt": 3, "epochs": 2, "minibatches": 2, "micro_batch_size": 4}
    rewards = [{"type": "function", "function": "module:score"}]
    ppo = PPOConfig.model_validate({"steps": 10, "rewards": rewards, "batch": values})
    assert batch_arithmetic(ppo, processes=5) == [
        "24 answers = 8 prompts × 3",
        "2 epochs × 2 minibatches of 12 rows = 4 optimizer steps per iteration",
        "5 processes × at most 3 rows per optimizer step",
        "micro-batches of 3 rows",
        "10 iterations = 240 answers, 40 optimizer steps",
    ]
    assert batch_arithmetic(ppo)[2:4] == ["1 process × 12 rows per optimizer step", "micro-batches of 4 rows"]


def test_diff_is_empty_when_recipes_are_equal() -> None:
    assert diff(recipe(), recipe()) == []


def test_diff_names_keys_with_both_values() -> None:
    other = recipe(
        seed=3,
        model={"path": "tiny", "form": {"type": "lora", "rank": 8}},
        ppo={"rewards": [{"type": "function", "function": "module:score", "weight": 2}], "kl": {"coefficient": 0.1}},
    )
    assert diff(recipe(), other) == [
        "seed: 0 ≠ 3",
        "model.form: {type: full} ≠ {type: lora, rank: 8, alpha: 32.0, targets: none, adapter: none, "
        "unfrozen_layers: none, decoder_only: false}",
        "ppo.rewards.0.weight: 1.0 ≠ 2.0",
        "ppo.kl.coefficient: 0.05 ≠ 0.1",
    ]


def test_diff_names_the_section_when_one_side_has_none() -> None:
    assert diff(recipe(ppo=None), recipe())[0].startswith("ppo: none ≠ {steps: 100, rewards: ")
    assert len(diff(recipe(ppo=None), recipe())) == 1


class Inner(Config):
    """A group with a default of its own."""

    size: int = 1
    """How large it is."""


class Outer(Config):
    """Holds the group with another default."""

    inner: Inner = Inner(size=5)
    """The group."""


def test_describe_compares_with_the_default_of_the_section_that_holds_the_group() -> None:
    assert line(describe(Outer()), "inner") == "inner size 5"
    assert line(describe(Outer(inner=Inner(size=1))), "inner") == "inner size* 1 (5)"
