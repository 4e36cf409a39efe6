"""What a section read, told by content, and which settings and paths count as the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydralign.config import Recipe, SourceConfig, read_config
from hydralign.config.data import FilterConfig
from hydralign.runs import inputs
from hydralign.runs.inputs import _without_new_defaults, changes, inputs_of
from hydralign.runs.kinds import SECTIONS
from hydralign.runs.same_settings import comparable, comparable_text
from hydralign.runs.steps import Step


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    base, model, data = tmp_path / "base", tmp_path / "model", tmp_path / "data"
    for folder in (base, model, data):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_text("base")
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (model / "adapter_model.safetensors").write_text("adapter")
    (model / "README.md").write_text("a model")
    (data / "a.jsonl").write_text("{}")
    (tmp_path / "held_out.jsonl").write_text("{}")
    (tmp_path / "rule.py").write_text("from helper import words\n\n\ndef rule(completions):\n    return words\n")
    (tmp_path / "helper.py").write_text("words = []\n")
    values = {
        "output": str(tmp_path / "out"),
        "model": {"path": str(model)},
        "data": {
            "prompts": {"source": str(data), "held_out": {"by": "source", "source": str(tmp_path / "held_out.jsonl")}}
        },
        "ppo": {"rewards": [{"type": "function", "function": f"{tmp_path / 'rule.py'}:rule"}]},
        "compare": {"after": "some/hub-id"},
    }
    return read_config(Recipe, values).resolved()


def step(recipe: Recipe, section: str = "ppo", **changes: Any) -> Step:
    """The recipe's step of this section, with other settings."""
    (found,) = SECTIONS[section].steps(recipe)
    return replace(found, config=found.config.model_copy(update=changes))


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda at: (at / "base/model.safetensors").write_text("BASE"), "base/model.safetensors has other content"),
        (lambda at: (at / "model/tokenizer.json").write_text("{}"), "model/tokenizer.json is new"),
        (lambda at: (at / "model/adapter_model.safetensors").unlink(), "adapter_model.safetensors is not there"),
        (lambda at: (at / "data/a.jsonl").write_text("[]"), "a.jsonl has other content"),
        (lambda at: (at / "data/b.csv").write_text("prompt"), "data/b.csv is new"),
        (lambda at: (at / "held_out.jsonl").write_text("[]"), "data.prompts.held_out.source"),
        (lambda at: (at / "rule.py").write_text("def rule(completions): ..."), "rule.py has other content"),
        (lambda at: (at / "helper.py").write_text("words = [1]"), "helper.py has other content"),
        (lambda at: (at / "model/README.md").write_text("the model"), None),
        (lambda at: touch(at / "data/a.jsonl"), None),
    ],
)
def test_change_of_content_is_told_by_file(
    change: Callable[[Path], Any], told: str | None, recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe.ppo is not None
    before = inputs_of(recipe, step(recipe))
    change(tmp_path)
    changed, gone = changes(before, inputs_of(recipe, step(recipe), before))
    assert gone == []
    if told is None:
        assert changed == []
    else:
        assert len([line for line in changed if told in line]) == 1, changed


def test_input_that_is_gone_is_missing_and_not_changed(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.ppo is not None
    before = inputs_of(recipe, step(recipe))
    (tmp_path / "held_out.jsonl").unlink()
    assert changes(before, inputs_of(recipe, step(recipe))) == ([], [str(tmp_path / "held_out.jsonl")])


def test_large_file_is_hashed_again_only_when_its_size_or_time_changed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.ppo is not None
    monkeypatch.setattr(inputs, "_LARGE", 1)
    before = inputs_of(recipe, step(recipe))
    file = tmp_path / "data/a.jsonl"
    time = file.stat().st_mtime_ns
    file.write_text("[]")
    os.utime(file, ns=(time, time))
    assert changes(before, inputs_of(recipe, step(recipe), before)) == ([], [])
    touch(file)
    assert len(changes(before, inputs_of(recipe, step(recipe), before))[0]) == 1


def test_comparison_reads_the_settings_that_it_takes_from_ppo(recipe: Recipe) -> None:
    assert recipe.ppo is not None
    before = inputs_of(recipe, step(recipe, "compare"))
    assert before["inputs"]["after"] == {"name": "some/hub-id"}
    hotter = recipe.ppo.model_copy(update={"sampling": recipe.ppo.sampling.model_copy(update={"temperature": 0.5})})
    now = inputs_of(recipe.model_copy(update={"ppo": hotter}), step(recipe, "compare"))
    assert changes(before, now) == (["ppo.sampling has other settings"], [])


def test_reward_module_is_found_without_importing_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.ppo is not None
    package = tmp_path / "judges"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "short.py").write_text("from .words import WORDS\nimport judges.more\n")
    (package / "words.py").write_text("WORDS = []")
    (package / "more.py").touch()
    monkeypatch.chdir(tmp_path)
    term = recipe.ppo.rewards[0].model_copy(update={"function": "judges.short:rule"})
    record = inputs_of(recipe, step(recipe, rewards=(term,)))
    files = {"short.py", "words.py", "more.py", "__init__.py"}
    assert record["inputs"]["rewards.0.function"]["files"].keys() == files


@pytest.mark.parametrize("function", ["rewards/rule.py:rule", "judges.rule:rule"])
def test_reward_function_imports_from_its_package_the_working_folder_and_the_path(
    function: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.ppo is not None
    text = "import json, torch, here, judges.words\nfrom lib.deep import x\nfrom hydralign import types\n"
    for name in ("rewards/rule.py", "judges/__init__.py", "judges/rule.py", "judges/words.py", "here.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "path/lib").mkdir(parents=True)
    (tmp_path / "path/lib/__init__.py").touch()
    (tmp_path / "path/lib/deep.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "path")
    term = recipe.ppo.rewards[0].model_copy(update={"function": function})
    record = inputs_of(recipe, step(recipe, rewards=(term,)))
    folder = tmp_path / function.replace(".", "/").partition("/")[0]
    found = {os.path.relpath(folder / name, tmp_path) for name in record["inputs"]["rewards.0.function"]["files"]}
    own = f"{folder.name}/rule.py"
    files = {own, "here.py", "judges/__init__.py", "judges/words.py", "path/lib/__init__.py", "path/lib/deep.py"}
    assert found == files


@pytest.mark.parametrize("output", ["run1", "./run1", "run1/", "./run1//", "{here}/run1", "../here/run1"])
@pytest.mark.parametrize("text", ["{output}/sft/model", "run1/sft/model", "{here}/run1/sft/model"])
def test_every_spelling_of_the_output_is_the_same_folder(
    output: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    output = output.replace("{here}", str(here))
    text = text.replace("{output}", output).replace("{here}", str(here))
    assert comparable_text(text, output) == "{output}/sft/model"
    assert comparable_text("run12/sft", output) == "run12/sft"


def test_settings_that_change_no_result_are_left_out(recipe: Recipe) -> None:
    values = recipe.model_dump()
    other = json.loads(json.dumps(values))
    other["ppo"]["batch"]["micro_batch_size"] = 1
    other["ppo"]["sampling"]["decode_batch_size"] = 1
    other["ppo"]["evaluation"]["every"] = 3
    other["ppo"]["saving"]["keep"] = 7
    other["ppo"]["stop_after_bad_steps"] = 9
    other["ppo"]["trackers"] = ["wandb"]
    other["compare"]["micro_batch_size"] = 1
    assert comparable(read_config(Recipe, other), recipe.output) == comparable(recipe, recipe.output)
    other["ppo"]["evaluation"]["prompts"] = 3
    assert comparable(read_config(Recipe, other), recipe.output) != comparable(recipe, recipe.output)


def test_keys_of_the_users_own_are_never_taken_for_settings(recipe: Recipe) -> None:
    assert recipe.ppo is not None
    records = []
    for text in ("each", "EACH"):
        values = recipe.model_dump()
        values["data"]["prompts"] |= {"replace": {"every": text}, "columns": {"source": "article"}}
        records.append(read_config(Recipe, values))
    assert comparable(records[0], recipe.output) != comparable(records[1], recipe.output)
    before, now = (inputs_of(one, step(one)) for one in records)
    assert before["inputs"]["data.prompts"]["settings"]["columns"] == {"source": "article"}
    assert changes(before, now) == (["data.prompts has other settings"], [])


def test_setting_that_an_earlier_version_did_not_know_changes_nothing_until_it_is_set() -> None:
    before = {"limit": None, "filter": {"min_characters": 3}}
    plain = SourceConfig(source="rows.jsonl", filter=FilterConfig(min_characters=3))
    for config, kept in ((plain, []), (plain.model_copy(update={"where": {"kind": ("a",)}}), ["where"])):
        value = {name: part for name, part in config.model_dump().items() if name != "source"}
        found = _without_new_defaults(value, before, config)
        assert found["filter"] == before["filter"]
        assert sorted(found.keys() - before.keys()) == kept
    assert _without_new_defaults({"limit": 3}, {"limit": None}, plain) == {"limit": 3}
