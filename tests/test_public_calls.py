"""Every public name takes the plainest call: paths as text, lists for tuples, nothing that has a default."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import hydralign
from hydralign.models.classifiers.training import SequenceClassifier, wrap_classifier
from hydralign.models.forms.build import make_supervised_policy
from hydralign.models.policy import Policy
from hydralign.rewards import RewardModel
from hydralign.testing import LengthReward, tiny_model, tiny_policy, tiny_tokenizer
from tests.conftest import FORMS

hy: Any = hydralign  # arguments of the wrong kind are the subject here

PACKAGES = ("hydralign", "hydralign.config", "hydralign.data", "hydralign.models", "hydralign.rewards")


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and their public methods behind the `__all__` of the packages that users import from."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            yield f"{package}.{name}", value
            for method, function in inspect.getmembers(value, callable) if inspect.isclass(value) else ():
                if not method.startswith("_") and not hasattr(object, method):
                    yield f"{package}.{name}.{method}", function


def paths_that_take_no_string() -> list[str]:
    """Parameters that hold a path by name or by type, and whose annotation leaves out text or `os.PathLike`."""
    found = []
    function: Any
    for name, function in [
        *public_callables(),
        ("Policy.save", Policy.save),
        ("SequenceClassifier.save", SequenceClassifier.save),
    ]:
        if "pydantic" in (inspect.getmodule(function) or SimpleNamespace(__name__="")).__name__:
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            continue
        for parameter in parameters:
            kind = str(parameter.annotation)
            is_path = parameter.name in ("path", "folder", "file") or re.search(r"\bPath\b", kind)
            if is_path and not {"str", "os.PathLike[str]"} <= {part.strip() for part in kind.split("|")}:
                found.append(f"{name}({parameter.name}: {kind})")
    made_by_us = ("hydralign.RunResult(",)
    return [line for line in found if "Config(" not in line and not line.startswith(made_by_us)]


def test_every_public_path_may_be_text_or_a_path() -> None:
    assert paths_that_take_no_string() == []
    assert len(list(public_callables())) > 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer() -> SequenceClassifier:
    from hydralign.models.folders.from_scratch import make_classifier

    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"family": "gpt2", "layers": 1, "width": 16, "heads": 2, "context": 64}
    return wrap_classifier(make_classifier(tokenizer, **sizes, labels=("score",)), tokenizer)


@pytest.fixture(scope="module")
def reward_model(scorer: SequenceClassifier) -> RewardModel:
    return RewardModel(scorer.model, scorer.tokenizer)


@pytest.mark.parametrize("as_given", [str, Path, lambda path: f"{path}/"], ids=["text", "path", "text with a slash"])
def test_policy_is_exported_to_any_kind_of_path(
    as_given: Callable[[Path], Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = hy.load_policy(as_given(folder))
    policy.save(as_given(tmp_path / "new" / "mine"))
    assert hy.load_policy(as_given(tmp_path / "new" / "mine")).context == policy.context
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    policy.save("here")
    policy.save("~/home")
    assert {"here", "home"} <= {part.name for part in tmp_path.iterdir()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_exported_to_text(form: str, tmp_path: Path) -> None:
    policy: Policy = tiny_policy(form=FORMS[form])
    policy.save(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "value_head.safetensors").exists()


def test_student_and_scorer_are_exported_to_text(scorer: SequenceClassifier, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    make_supervised_policy(tiny_model(tokenizer), tokenizer).save(str(tmp_path / "student"))
    scorer.save(str(tmp_path / "scorer"))
    assert {"student", "scorer"} <= {part.name for part in tmp_path.iterdir()}


def test_export_into_a_folder_of_other_things_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, ".", "..", "file", "file/below"):
        with pytest.raises(hy.HydralignError, match="(?i)name another"):
            tiny_policy().save(place)
    assert sorted(part.name for part in tmp_path.iterdir()) == ["file", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # the second takes the place of the first
        tiny_policy().save("empty")


@pytest.mark.parametrize("form", ["full", "lora", "hydra"])
def test_form_may_be_named(form: str, folder: Path) -> None:
    policy = (
        hy.load_policy(str(folder), form=form) if form != "hydra" else tiny_policy(form=hy.HydraForm(unfrozen_layers=1))
    )
    trained = policy.form.trained()
    kind = "hydra" if policy.trunk else "lora" if all("lora_" in name for name in trained) else "full"
    assert kind == form
    assert (len(trained) == len(list(policy.model.parameters()))) == (form == "full")


def test_unknown_form_is_a_named_error_and_never_the_full_form(folder: Path) -> None:
    with pytest.raises(hy.HydralignError, match="form='loar'.*Did you mean 'lora'"):
        hy.load_policy(folder, form="loar")


def test_texts_are_answered_as_they_are() -> None:
    policy = tiny_policy()
    stream = hy.PromptStream(["this", "a small text of", "that"])
    plan = hy.SamplingParams(max_new_tokens=3)
    texts = hy.collect(policy, stream.batch(0, 2), LengthReward(2), plan)
    ids = [hy.Prompt(text, tuple(policy.tokenizer(text).input_ids)) for text in stream.batch(0, 2)]
    prompts = hy.collect(policy, ids, LengthReward(2), plan)
    assert texts.rollout.completions == prompts.rollout.completions
    assert [prompt.text for prompt in texts.rollout.prompts] == list(stream.batch(0, 2))
    assert len(hy.sample(policy, ["this"])) == len(hy.sample(policy, [hy.Prompt("this")])) == 1
    listed = hy.Prompt("this", policy.tokenizer("this").input_ids)
    assert hy.sample(policy, [listed], plan).completions == hy.sample(policy, ["this"], plan).completions


def test_a_loop_of_plain_calls_learns() -> None:
    policy = tiny_policy()
    optimizer = hy.make_optimizer(policy)
    experience = hy.collect(policy, ["this", "that", "a", "the"], lambda completions: [1 for _ in completions])
    stats = hy.update(policy, optimizer, experience, hy.estimate(experience), epochs=1)
    assert stats["ppo/optimizer_steps"] == 4


def length(completions: list[str]) -> list[int]:
    return [len(text) for text in completions]


@pytest.mark.parametrize(
    "reward",
    [length, [length], [length, LengthReward(3)], hy.RewardTerm("long", length), (hy.RewardTerm("long", length, 2),)],
    ids=["function", "functions", "function and object", "term", "terms"],
)
def test_reward_may_be_a_function_a_term_or_several(reward: Any) -> None:
    assert len(hy.collect(tiny_policy(), ["this"], reward).scores.terms) in (1, 2)


def test_reward_model_needs_no_finished(reward_model: RewardModel) -> None:
    plain = reward_model(["this", "that"], [" and", " thing"])
    assert plain == reward_model(["this", "that"], [" and", " thing"], finished=[True, True])
    assert plain != reward_model(["this", "that"], [" and", " thing"], finished=[False, False])


def test_rows_of_a_file_are_loaded_by_its_name(tmp_path: Path) -> None:
    rows = [{"prompt": f"this {n}"} for n in range(40)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    by_name, by_path = hy.load_prompts(str(file), tokenizer), hy.load_prompts(file, tokenizer)
    assert by_name.train == by_path.train == hy.load_prompts(rows, tokenizer).train
    assert by_name.report.rows_read == 40
    assert hy.load_prompts({"source": file, "limit": 3}, tokenizer).report.kept == 3
    assert hy.load_prompts([file], tiny_policy().tokenizer).report.rows_read == 40


def test_settings_take_paths_and_whole_numbers(tmp_path: Path) -> None:
    assert hy.LoraForm(adapter=tmp_path, alpha=8).adapter == str(tmp_path)
    recipe = hy.Recipe(output=tmp_path, model={"path": tmp_path})
    assert (recipe.output, recipe.model.path) == (str(tmp_path), str(tmp_path))
    term = hy.RewardTerm("long", length, weight=2)
    assert hy.compare_paired("score", [1, 2, 3], (2, 3, 4)).difference == term.weight - 1


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert hy.__version__ == version("hydralign")
    assert "__version__" in dir(hy)


def run_settings(folder: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "this {n}"}}\n' for n in range(40)))
    (tmp_path / "reward.py").write_text("def length(completions):\n    return [len(c) for c in completions]\n")
    return {
        "output": str(tmp_path / "out"),
        "model": {"path": str(folder)},
        "data": {"prompts": {"source": str(tmp_path / "prompts.jsonl"), "held_out": {"by": "hash", "percent": 30}}},
        "ppo": {
            "steps": 1,
            "rewards": [{"type": "function", "function": f"{tmp_path / 'reward.py'}:length"}],
            "sampling": {"max_new_tokens": 2},
            "batch": {"rows": 4, "epochs": 1, "minibatches": 1},
        },
        "compare": {"prompts": 4},
    }


def test_a_recipe_runs_by_its_name_and_returns_what_came_out(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(run_settings(folder, tmp_path)))
    result = hy.run_recipe(str(file))
    assert result.output == tmp_path / "out"
    assert result.differences["ppo"][0].metric == "score"
    assert result.records["compare"]["metrics"]["score"]["n"] == 4
    assert result.report == tmp_path / "out" / "report.html"
    assert result.sentences[-1] == result.differences["compare"][-1].sentence()
    again = hy.run_recipe(file)
    assert again.records == result.records
    assert again.differences == {"ppo": (), "compare": ()}
    assert hy.run_section(file, "ppo") == []


def test_a_recipe_made_in_python_runs_without_being_resolved(folder: Path, tmp_path: Path) -> None:
    settings = run_settings(folder, tmp_path)
    del settings["compare"]
    assert hy.run_recipe(hy.Recipe(**settings)).records["ppo"]["metrics"].keys() == {"score"}


POLICY: Any = tiny_policy()
OPTIMIZER: Any = hydralign.make_optimizer(POLICY.trained(), type="sgd")
MISTAKES: dict[str, Callable[[], Any]] = {
    "one text for prompts": lambda: hy.sample(POLICY, "this"),
    "one text for a stream": lambda: hy.PromptStream("this"),
    "numbers for prompts": lambda: hy.collect(POLICY, [1, 2], length),
    "no prompts": lambda: hy.collect(POLICY, [], length),
    "no reward": lambda: hy.collect(POLICY, ["this"], None),
    "text for a reward": lambda: hy.collect(POLICY, ["this"], "length"),
    "number among rewards": lambda: hy.collect(POLICY, ["this"], [length, 3]),
    "policy by name": lambda: hy.collect("model", ["this"], length),
    "setting out of range": lambda: hy.LoraForm(rank=0),
    "setting of the wrong kind": lambda: hy.LoraForm(rank="many"),
    "unknown setting": lambda: hy.HydraForm(layers=2),
    "missing setting": lambda: hy.Recipe(output="x"),
    "temperature 0": lambda: hy.SamplingParams(temperature=0),
    "no new tokens": lambda: hy.SamplingParams(max_new_tokens=0),
    "lengths in the wrong order": lambda: hy.SamplingParams(lengths=[4, 2]),
    "lengths as a number": lambda: hy.SamplingParams(lengths=4),
    "top_p above 1": lambda: hy.SamplingParams(top_p=2),
    "unknown optimizer": lambda: hy.make_optimizer(POLICY.trained(), type="adam"),
    "negative rate": lambda: hy.make_optimizer(POLICY.trained(), learning_rate=-1),
    "nothing to optimise": lambda: hy.make_optimizer({}),
    "model for an optimizer": lambda: hy.make_optimizer(3),
    "unknown estimator": lambda: hy.estimate(experience(), kl_estimator="k2"),
    "rows that do not divide": lambda: hy.update(POLICY, OPTIMIZER, experience(), hy.estimate(experience())),
    "no epochs": lambda: hy.update(POLICY, OPTIMIZER, experience(), hy.estimate(experience()), epochs=0),
    "no micro rows": lambda: hy.collect(POLICY, ["this"], length, micro_batch_size=0),
    "text for metrics": lambda: hy.compare_paired("score", ["a", "b"], ["c", "d"]),
    "ragged metrics": lambda: hy.compare_paired("score", [[1], [1, 2]], [[1], [1, 2]]),
    "recipe that is no file": lambda: hy.run_recipe("nowhere.yaml"),
    "recipe that is none": lambda: hy.run_recipe(None),
    "section that is none": lambda: hy.run_section("nowhere.yaml", "ppo"),
    "recipe of a number": lambda: hy.load_recipe(3),
    "prompts of a number": lambda: hy.load_prompts(3, tiny_tokenizer()),
    "prompts without a tokenizer": lambda: hy.load_prompts([{"prompt": "x"}], "gpt2"),
    "prompts of unknown settings": lambda: hy.load_prompts({"sauce": "x"}, tiny_tokenizer()),
    "policy of a number": lambda: hy.load_policy(3),
    "policy of an empty name": lambda: hy.load_policy(""),
    "unknown precision": lambda: hy.load_policy("gpt2", precision="fp16"),
    "export to a number": lambda: POLICY.save(3),
    "export to nothing": lambda: POLICY.save(""),
}


def experience() -> Any:
    return hy.collect(POLICY, ["this", "that", "a"], length, hy.SamplingParams(max_new_tokens=2))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_a_named_error_with_a_way_out(mistake: Callable[[], Any]) -> None:
    with pytest.raises(hy.HydralignError) as raised:
        mistake()
    text = str(raised.value)
    assert ": " in text
    assert len(text.splitlines()) <= 6


def test_rewards_refuse_one_text_and_unequal_lists(reward_model: RewardModel) -> None:
    for prompts, answers in (("this", "that"), (["this"], ["a", "b"]), (["this", "that"], ["a"])):
        with pytest.raises(hy.HydralignError, match="list"):
            reward_model(prompts, answers)
    with pytest.raises(hy.HydralignError, match="finished"):
        reward_model(["this", "that"], ["a", "b"], [True])


def test_texts_of_a_stream_keep_the_order_of_any_other_rows() -> None:
    texts = ["a", "b", "c", "d", "e"]
    assert hy.PromptStream(texts, 3).batch(1, 4) == hy.PromptStream(tuple(texts), seed=3).batch(1, 4)
