"""Recipes load strictly: one clear sentence per mistake, at any depth, and what is written loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hydralign.config import (
    Config,
    PPOConfig,
    Recipe,
    dump_config,
    dump_recipe,
    load_recipe,
    parse_overrides,
    read_config,
)
from hydralign.config.model import LoraForm
from hydralign.config.ppo import AdaptiveKL
from hydralign.config.rewards import ClassifierRewardConfig
from hydralign.config.training import SupervisedBatchConfig
from hydralign.errors import ConfigError, UnknownKeyError

RECIPE = """
output: runs/x
model:
  path: tiny
  form: {type: lora, rank: 8}
data:
  prompts: {source: [a.jsonl, b.jsonl], cut: {}, columns: {prompt: question}}
ppo:
  steps: 20
  rewards:
    - {type: classifier, path: c, label: POSITIVE}
    - {type: function, function: "module:score", weight: 0.5}
  optimizer: {learning_rate: 1e-5, betas: [0.8, 0.9]}
  kl: {controller: {type: adaptive, target: 3}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def message(path: Path, *overrides: str, kind: type[ConfigError] = ConfigError) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert type(caught.value) is kind
    return str(caught.value)


def test_load_recipe_reads_every_kind_of_value(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.ppo is not None
    assert recipe.data.prompts is not None
    assert recipe.model.form == LoraForm(type="lora", rank=8)
    assert recipe.data.prompts.source == ("a.jsonl", "b.jsonl")
    assert recipe.ppo.optimizer.learning_rate == 1e-5
    assert recipe.ppo.optimizer.betas == (0.8, 0.9)
    assert recipe.ppo.kl.controller == AdaptiveKL(type="adaptive", target=3.0)
    assert recipe.ppo.rewards[0] == ClassifierRewardConfig(type="classifier", path="c", label="POSITIVE")


def test_overrides_may_be_values_by_dotted_key(path: Path) -> None:
    by_key = load_recipe(path, {"seed": 7, "ppo.optimizer.betas": [0.7, 0.8]})
    assert by_key == load_recipe(path, ["--seed", "7", "--ppo.optimizer.betas", "[0.7, 0.8]"])


def test_load_recipe_resolves_what_depends_on_another_section(path: Path) -> None:
    lora = load_recipe(path, ["--ppo.optimizer.learning_rate", "null"]).ppo
    full = load_recipe(path, ["--ppo.optimizer.learning_rate", "null", "--model.form", "{type: full}"]).ppo
    assert lora is not None
    assert full is not None
    assert (lora.optimizer.learning_rate, full.optimizer.learning_rate) == (3e-5, 3e-6)


def test_home_of_the_output_is_written_out_wherever_it_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-all")
    recipe = load_recipe(path, ["--output=~/runs", "--sft={}", "--ppo.rewards.0.path='{output}/reward/model'"])
    assert recipe.output == "/home-of-all/runs"
    assert recipe.ppo is not None
    assert recipe.ppo.model is not None
    assert isinstance(recipe.ppo.model.form, LoraForm)
    assert recipe.ppo.model.form.adapter == "/home-of-all/runs/sft/model"
    assert isinstance(recipe.ppo.rewards[0], ClassifierRewardConfig)
    assert recipe.ppo.rewards[0].path == "/home-of-all/runs/reward/model"


def test_dump_recipe_loads_again_to_an_equal_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["--ppo.optimizer.learning_rate", "null", "--output", "'5: no'", "--seed", "7"])
    written = tmp_path / "written.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(written) == recipe
    assert "learning_rate: 3.0e-05" in dump_recipe(recipe)


def test_dump_config_is_read_again_as_the_same_group(path: Path) -> None:
    ppo = load_recipe(path).ppo
    assert ppo is not None
    assert read_config(PPOConfig, yaml.safe_load(dump_config(ppo))) == ppo


NEW_LORA = "{new: {layers: 2}, form: {type: lora}}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"--model={NEW_LORA}"], "model has a LoRA form on a new model"),
        ([f"--model={NEW_LORA}", "--sft={}", "--ppo=null"], "model has a LoRA form on a new model"),
        ([f"--ppo.model={NEW_LORA}"], "ppo.model has a LoRA form"),
        ([f"--sft={{model: {NEW_LORA}}}"], "sft.model has a LoRA form"),
        ([f"--sft=[{{name: a}}, {{name: b, model: {NEW_LORA}}}]"], "sft.1.model has a LoRA form"),
    ],
)
def test_adapters_of_a_policy_need_a_base_that_can_be_named(path: Path, overrides: list[str], said: str) -> None:
    told = message(path, *overrides)
    assert told.startswith(said)
    assert told.endswith("Use form: {type: full}, or a model that lies in a folder.")


def test_adapters_of_a_reward_model_are_merged_and_need_no_base(path: Path) -> None:
    recipe = load_recipe(path, [f"--model={NEW_LORA}", "--ppo=null", "--reward={}"])
    assert isinstance(recipe.model.form, LoraForm)
    after_sft = load_recipe(path, [f"--model={NEW_LORA}", "--sft={model: {path: tiny}}"])
    assert after_sft.ppo is not None
    assert after_sft.ppo.model is not None
    assert after_sft.ppo.model.path == "runs/x/sft/model"


def test_comparison_with_the_start_of_ppo_needs_one_that_lies_somewhere(path: Path) -> None:
    told = message(path, "--model={new: {}}", "--compare={}")
    assert told.startswith("compare.before is not set, and ppo starts from a new model")
    for way_out in (["--compare.before=tiny"], ["--sft={}"], ["--ppo.model={path: tiny}"]):
        recipe = load_recipe(path, ["--model={new: {}}", "--compare={}", *way_out])
        assert recipe.compare is not None
        assert recipe.compare.before in ("tiny", "runs/x/sft/model")


def test_overrides_replace_values_at_any_depth_and_the_last_one_wins(path: Path) -> None:
    overrides = ["--ppo.kl.coefficient", "0.1", "--ppo.rewards.1.weight=-2", "--ppo.steps=9", "--ppo.steps", "1_0"]
    ppo = load_recipe(path, overrides).ppo
    assert ppo is not None
    assert (ppo.kl.coefficient, ppo.rewards[0].weight, ppo.rewards[1].weight, ppo.steps) == (0.1, 1.0, -2.0, 10)
    assert ppo.kl.controller == AdaptiveKL(type="adaptive", target=3.0)


def test_overrides_change_one_place_only_when_two_share_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "alias.yaml"
    source = "{source: a.jsonl, filter: {min_tokens: 1}}"
    file.write_text(f"output: o\nmodel: {{path: p}}\ndata:\n  comparisons: &a {source}\n  labelled: *a\n")
    data = load_recipe(file, ["--data.labelled.filter.min_tokens", "5"]).data
    assert data.comparisons is not None
    assert data.labelled is not None
    assert (data.comparisons.filter.min_tokens, data.labelled.filter.min_tokens) == (1, 5)


def test_parse_overrides_reads_yaml_values() -> None:
    arguments = [
        "--a",
        "3",
        "--b.c=1.5",
        "--d",
        "[x, 2]",
        "--e={k: true}",
        "--f=",
        "--g",
        "a b",
        "--h=--x",
        "--i",
        "-1",
    ]
    assert parse_overrides(arguments) == [
        ("a", 3),
        ("b.c", 1.5),
        ("d", ["x", 2]),
        ("e", {"k": True}),
        ("f", None),
        ("g", "a b"),
        ("h", "--x"),
        ("i", -1),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ppo.steps"], "--ppo.steps has no value"),
        (["--ppo.steps", "--seed", "1"], "--ppo.steps has no value"),
        (["ppo.steps=1"], "argument 'ppo.steps=1' names no setting"),
        (["--ppo..steps=1"], "argument '--ppo..steps=1' names no setting"),
        (["--seed", "[1"], "--seed, line 1, column 3: this is not YAML"),
        (["--model.form", "{rank: 1, rank: 2}"], "--model.form: key 'rank' stands twice"),
    ],
)
def test_parse_overrides_refuses_what_it_cannot_read(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(arguments)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "key", "advice"),
    [
        ("--stepz=1", "stepz", "Known here: "),
        ("--epochs=1", "epochs", "Did you mean sft.epochs or reward.epochs?"),
        ("--ppo.learning_rate=1", "ppo.learning_rate", "Did you mean ppo.optimizer.learning_rate?"),
        ("--data.prompts.percent=1", "data.prompts.percent", "Did you mean data.prompts.held_out.percent?"),
        ("--ppo.stepz=1", "ppo.stepz", "Did you mean 'steps'?"),
        ("--ppo.optimizer.learning_rat=1", "ppo.optimizer.learning_rat", "Did you mean 'learning_rate'?"),
        ("--model.form.rankk=1", "model.form.rankk", "Did you mean 'rank'?"),
        ("--ppo.kl.controller.targett=1", "ppo.kl.controller.targett", "Did you mean 'target'?"),
        ("--ppo.rewards.0.labell=x", "ppo.rewards.0.labell", "Did you mean 'label'?"),
        ("--data.prompts.cut.max_token=3", "data.prompts.cut.max_token", "Did you mean 'max_tokens'?"),
    ],
)
def test_unknown_key_is_named_in_full_with_the_nearest_of_its_own_section(
    path: Path, override: str, key: str, advice: str
) -> None:
    said = message(path, override, kind=UnknownKeyError)
    assert said.startswith(f"{key} is not a setting: ")
    assert advice in said


def test_unknown_key_in_the_file_is_found_as_in_an_override(path: Path) -> None:
    path.write_text(RECIPE.replace("rank: 8", "rankk: 8"), encoding="utf-8")
    assert message(path, kind=UnknownKeyError).startswith("model.form.rankk is not a setting: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "--ppo.steps=x",
            "ppo.steps='x' cannot be used: it sets “Iterations: each samples, scores, estimates and ",
        ),
        ("--ppo.steps=2.5", "Give a whole number."),
        ("--ppo.steps=yes", "ppo.steps=True is a yes or no: it would count as 1."),
        (
            "--ppo.loss.clip=-1",
            "ppo.loss.clip=-1 cannot be used: it sets “Bound on the probability ratio's",
        ),
        ("--ppo.loss.clip=0", "Give a number above 0."),
        ("--seed=-1", "Give a number of at least 0."),
        ("--ppo.optimizer.type=adam", "ppo.optimizer.type='adam' cannot be used: it sets “Optimizer”. Give 'adamw' or"),
        ("--ppo.optimizer.betas=[1, 2, 3]", "ppo.optimizer.betas=[1, 2, 3] cannot be used"),
        ("--ppo.optimizer.betas=[0.9]", "ppo.optimizer.betas.1 is missing"),
        ("--model.pad_token=no", "model.pad_token=False cannot be used: it sets “Padding token"),
        ("--ppo.batch=null", "ppo.batch=None cannot be used: it sets “Rows, optimizer steps, forward passes”."),
        (
            "--ppo.rewards={}",
            "ppo.rewards={} cannot be used: it sets “Terms whose weighted sum is the score”. Give",
        ),
        (
            "--model.form.type=lor",
            "model.form.type='lor' is not known: what stands beside it depends on it. Use one of ",
        ),
        (
            "--model.form={rank: 3}",
            "model.form has no type: which settings it takes depends on that. Add type, one of ",
        ),
        ("--model.form=lora", "model.form='lora' cannot be used"),
        ("--model.form=lora", "Give a section of keys and values, here {type: lora}."),
        ("--ppo.kl.controller=adaptive", "here {type: adaptive}."),
        ("--ppo.rewards.0={type: classifier, path: c}", "ppo.rewards.0.label is missing: it sets “Name of the label"),
        ("--ppo.rewards.2.weight=1", "--ppo.rewards.2.weight: ppo.rewards is a list of 2, counted from 0, so '2' is"),
        ("--ppo.trackers.0=wandb", "--ppo.trackers.0: ppo.trackers is not in the recipe, so it has no item 0"),
        ("--data.prompts.source=5", "Give text (in quotes if it looks like a number, a date, yes or no) or a list."),
        ("--data.prompts.source=[a, 5]", "data.prompts.source.1=5 cannot be used"),
        ("--data.prompts.columns={a: 1}", "data.prompts.columns.a=1 cannot be used: it sets “Our name: theirs"),
        ("--ppo.rewards=[]", "ppo.rewards is empty: there is nothing to learn from. Name at least one reward."),
    ],
)
def test_wrong_value_is_named_with_its_key_and_what_is_wanted(path: Path, override: str, said: str) -> None:
    whole = message(path, override)
    assert said in whole
    assert "\n" not in whole
    assert not [phrase for phrase in ("pydantic", "Value error", "Input should", "https:") if phrase in whole]


def test_key_below_a_plain_value_is_unknown(path: Path) -> None:
    said = message(path, "--model.path.name=x", kind=UnknownKeyError)
    assert said.startswith("model.path.name is not a setting: model.path holds the value 'tiny'")


def test_several_mistakes_are_all_listed_one_per_line(path: Path) -> None:
    said = message(
        path, "--ppo.steps=x", "--ppo.loss.clip=-1", "--sed=1", "--model.form.type=lor", kind=UnknownKeyError
    )
    lines = said.split("\n")
    assert lines[0] == "4 settings cannot be used:"
    assert [line.split(maxsplit=1)[0].partition("=")[0] for line in lines[1:]] == [
        "model.form.type",
        "ppo.steps",
        "ppo.loss.clip",
        "sed",
    ]


def test_long_value_is_cut_in_the_message(path: Path) -> None:
    assert len(message(path, "--ppo.steps=" + "x" * 1000)) < 300


class Group(Config):
    """A group that a recipe may hold once or several times."""

    size: int
    """How large it is."""


class Groups(Config):
    """A union without tags: one group, or a list of them."""

    group: Group | tuple[Group, ...]
    """The group or groups."""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"size": 1, "sice": 2},
            "group.sice is not a setting: it would be ignored, and a default used in its place.",
        ),
        (
            [{"size": 1}, {"size": "x"}],
            "group.1.size='x' cannot be used: it sets “How large it is”. Give a whole",
        ),
        (3, "group=3 cannot be used: it sets “The group or groups”. Give a section of keys and values or a list."),
    ],
)
def test_union_without_tags_reports_the_member_that_was_meant(given: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(Groups, {"group": given})
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing"),
        ("- a\n- b\n", "holds a list"),
        ("output: [a\n", "this is not YAML"),
        (
            "output: a\nseed: 1\noutput: b\n",
            "key 'output' stands twice in one section, the second time in line 3",
        ),
        ("output: a\nmodel: {path: p, path: q}\n", "key 'path' stands twice in one section, the second time in line 2"),
        ("model: {path: p}\n", "output is missing: it sets “Folder for results. Elsewhere in the recipe"),
        ("output: a\nmodel: {}\n", "model.path and model.new: neither was given"),
        (
            "output: a\nmodel: {path: m}\nsft: {model: {form: {type: lora}}}\n",
            "sft.model.path and sft.model.new: neither was given",
        ),
        ("output: a\nmodel: {path: p}\n1: x\n", "1 is not a setting"),
    ],
)
def test_load_recipe_refuses_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert said in str(caught.value)


def test_load_recipe_names_the_path_when_it_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in [
        (tmp_path / "none.yaml", "does not exist"),
        (tmp_path, "cannot be read"),
        (binary, "cannot be read"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert f"recipe {path} {said}" in str(caught.value)


def test_load_recipe_runs_no_code_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("output: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="the tag !!python/object/apply:os.getcwd"):
        load_recipe(file)


def test_config_made_in_python_names_each_wrong_setting_as_a_recipe_does() -> None:
    wrong: dict[str, Any] = {"steps": 0, "learning_rate": 1e-5, "rewards": []}
    with pytest.raises(UnknownKeyError) as caught:
        PPOConfig(**wrong)
    said = str(caught.value)
    assert said.startswith("PPOConfig: 2 settings cannot be used:\nsteps=0 cannot be used: it sets “Iterations: each ")
    assert "Give a number of at least 1.\nlearning_rate is not a setting" in said
    assert said.endswith("Did you mean optimizer.learning_rate?")


def test_read_config_takes_values_from_python() -> None:
    recipe = read_config(Recipe, {"output": "o", "model": {"path": "p"}})
    assert recipe == Recipe.model_validate({"output": "o", "model": {"path": "p"}})


def test_settings_load_under_their_old_names_and_say_the_new_one(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ["--ppo.batch.micro_rows", "7", "--ppo.sampling.decode_rows=9", "--compare.micro_rows", "5"]
    recipe = load_recipe(path, old)
    assert recipe.ppo is not None
    assert recipe.compare is not None
    assert (recipe.ppo.batch.micro_batch_size, recipe.ppo.sampling.decode_batch_size) == (7, 9)
    assert recipe.compare.micro_batch_size == 5
    said = capsys.readouterr().err
    assert said.count("micro_rows is called micro_batch_size now") == 1
    assert "decode_rows is called decode_batch_size now" in said
    assert "micro_rows" not in dump_recipe(recipe)
    last = load_recipe(path, [*old, "--ppo.batch.micro_batch_size", "3"])
    assert last.ppo is not None
    assert last.ppo.batch.micro_batch_size == 3


def test_one_setting_under_both_names_is_refused() -> None:
    both: dict[str, int] = {"micro_rows": 2, "micro_batch_size": 3}
    with pytest.raises(ConfigError, match="micro_rows and micro_batch_size are one setting"):
        SupervisedBatchConfig(**both)
