"""Runs end to end: bad input is a named error with a way out and exit code 2; good runs are finished, or go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydralign.cli import main
from hydralign.config import HydraForm, load_recipe
from hydralign.testing import tiny_model, tiny_tokenizer

Recipe = dict[str, Any]


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any) -> Recipe:
    """A recipe that works; each test breaks one thing in it."""
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["that and this thing of words"[:n] for n in range(1, 27)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (tmp_path / "rewards.py").write_text(REWARDS)
    return {
        "output": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "model")},
        "data": {"prompts": {"source": str(tmp_path / "prompts.jsonl"), "held_out": {"by": "hash", "percent": 30}}},
        "ppo": {
            "steps": 4,
            "rewards": [{"type": "function", "function": f"{tmp_path / 'rewards.py'}:length"}],
            "sampling": {"max_new_tokens": 4},
            "batch": {"rows": 4, "epochs": 1, "minibatches": 2},
        },
    }


REWARDS = """
calls = 0

def length(completions):
    return [float(len(c)) for c in completions]

def nan(completions):
    return [float("nan")] * len(completions)

def nan_at(completions, at):
    global calls
    calls += 1
    return nan(completions) if calls in at else length(completions)

def nan_once(completions):
    return nan_at(completions, {3})

def nan_thrice(completions):
    return nan_at(completions, {3, 4, 5})

def none(completions):
    return [None] * len(completions)

def too_few(completions):
    return [1.0]

def text(completions):
    return ["good"] * len(completions)
"""


def run(recipe: Recipe, *arguments: str, command: str = "ppo") -> int:
    path = Path(recipe["output"]).parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return main([command, str(path), *arguments])


def function(name: str) -> Callable[[Recipe], None]:
    def change(recipe: Recipe) -> None:
        recipe["ppo"]["rewards"][0]["function"] = recipe["ppo"]["rewards"][0]["function"].replace(":length", f":{name}")

    return change


def setting(key: str, value: Any) -> Callable[[Recipe], None]:
    def change(recipe: Recipe) -> None:
        *above, last = key.split(".")
        for part in above:
            recipe = recipe.setdefault(part, {})
        recipe[last] = value

    return change


def prompts(text: str) -> Callable[[Recipe], None]:
    def change(recipe: Recipe) -> None:
        Path(recipe["data"]["prompts"]["source"]).write_text(text)

    return change


def without_weights(recipe: Recipe) -> None:
    (Path(recipe["model"]["path"]) / "model.safetensors").unlink()


def without_pad(recipe: Recipe) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(recipe["model"]["path"])


def classifier(recipe: Recipe) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        vocab_size=300, n_embd=16, n_layer=1, n_head=2, id2label={0: "NEGATIVE", 1: "POSITIVE"}, pad_token_id=1
    )
    folder = Path(recipe["output"]).parent / "classifier"
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    recipe["ppo"]["rewards"] = [{"type": "classifier", "path": str(folder), "label": "POSITVE"}]


SIXTEEN = '{"prompt": "this"}\n' * 16
BEFORE_ANYTHING = {
    "unknown key": (setting("sead", 1), ["sead is not a setting", "Did you mean 'seed'?"]),
    "unknown nested key": (setting("ppo.kl.coeficient", 0.1), ["ppo.kl.coeficient", "'coefficient'"]),
    "unknown key in a kind": (setting("model.form", {"type": "lora", "rankk": 4}), ["model.form.rankk", "'rank'"]),
    "unknown kind": (setting("model.form", {"type": "lore"}), ["lore", "full", "lora"]),
    "wrong type": (setting("ppo.optimizer", {"learning_rate": "fast"}), ["ppo.optimizer.learning_rate", "'fast'"]),
    "minibatches": (setting("ppo.batch.minibatches", 3), ["rows=4", "minibatches=3", "Change"]),
    "samples": (setting("ppo.batch.samples_per_prompt", 3), ["rows=4", "samples_per_prompt=3"]),
    "truncated sampling": (setting("ppo.sampling.top_k", 5), ["off-policy", "allow_truncated_sampling"]),
    "no model": (setting("model", {}), ["neither was given", "Give exactly one"]),
}
BEFORE_TRAINING = {
    "missing data": (setting("data.prompts.source", "gone.jsonl"), ["gone.jsonl"]),
    "field missing in row 17": (prompts(SIXTEEN + '{"prmpt": "x"}\n'), ["prompts.jsonl", "row 17", "'prompt'"]),
    "empty prompt": (prompts(SIXTEEN + '{"prompt": ""}\n'), ["row 17", "'prompt'", "empty"]),
    "broken line": (prompts(SIXTEEN + '{"prompt": \n'), ["prompts.jsonl", "17"]),
    "no held-out prompts": (setting("data.prompts.held_out", {"by": "none"}), ["0 prompts are held out", "Set "]),
    "unknown function": (function("lenght"), ["lenght", "'length'"]),
    "unknown label": (classifier, ["POSITVE", "NEGATIVE", "'POSITIVE'"]),
    "no pad token": (without_pad, ["no pad token", "model.pad_token"]),
    "short context": (setting("ppo.sampling.max_new_tokens", 60), ["context holds 64", "Shorten"]),
    "no weights": (without_weights, ["no model.safetensors", "save_pretrained"]),
    "missing model": (setting("model.path", "./nowhere"), ["./nowhere", "does not exist"]),
}
IN_TRAINING = {
    "reward is NaN": (function("nan"), ["reward 'nan' gave nan for row", "Correct the reward"]),
    "reward is None": (function("none"), ["None for all"]),
    "reward count": (function("too_few"), ["1 entries for"]),
    "reward type": (function("text"), ["good"]),
}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The error as printed; everything before it is the plan."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error: ") == 1, error
    return error[error.index("error: ") :]


def half_written(output: Path) -> list[str]:
    return [str(path) for path in output.rglob("*") if "partial" in path.name or path.name in ("model", "after.json")]


@pytest.mark.parametrize(("change", "words"), BEFORE_ANYTHING.values(), ids=BEFORE_ANYTHING)
def test_bad_recipe_stops_before_anything_is_written(
    change: Callable[[Recipe], None], words: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recipe)
    assert run(recipe) == 2
    message = said(capsys)
    assert all(word in message for word in words), message
    assert not Path(recipe["output"]).exists()


@pytest.mark.parametrize(("change", "words"), BEFORE_TRAINING.values(), ids=BEFORE_TRAINING)
def test_bad_parts_stop_before_training(
    change: Callable[[Recipe], None], words: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recipe)
    assert run(recipe) == 2
    message = said(capsys)
    assert all(word in message for word in words), message
    assert not (Path(recipe["output"]) / "ppo").exists()
    assert run(recipe, "--dry-run") == 2
    assert said(capsys) == message


@pytest.mark.parametrize(("change", "words"), IN_TRAINING.values(), ids=IN_TRAINING)
def test_bad_rewards_stop_the_run_by_name(
    change: Callable[[Recipe], None], words: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recipe)
    assert run(recipe) == 2
    message = said(capsys)
    assert all(word in message for word in words), message
    assert half_written(Path(recipe["output"])) == []


def test_missing_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ppo", "gone.yaml"]) == 2
    assert "gone.yaml does not exist" in said(capsys)


def test_nan_in_one_iteration_is_survived_and_three_in_a_row_are_not(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    function("nan_once")(recipe)
    assert run(recipe) == 0
    rows = [json.loads(line) for line in (Path(recipe["output"]) / "ppo/metrics.jsonl").read_text().splitlines()]
    assert [row.get("event") for row in rows] == [None, "non_finite", None, None]
    recipe["output"] += "2"
    capsys.readouterr()
    function_name = recipe["ppo"]["rewards"][0]["function"]
    recipe["ppo"]["rewards"][0]["function"] = function_name.replace("nan_once", "nan_thrice")
    assert run(recipe) == 2
    assert "3 steps in a row" in said(capsys)
    assert half_written(Path(recipe["output"])) == []


def test_output_of_another_recipe_is_refused_and_left_as_it_was(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe) == 0
    before = {path: path.read_bytes() for path in Path(recipe["output"]).rglob("*") if path.is_file()}
    capsys.readouterr()
    recipe["ppo"]["kl"] = {"coefficient": 0.5}
    assert run(recipe) == 2
    message = said(capsys)
    assert "ppo.kl.coefficient: 0.05 ≠ 0.5" in message
    assert {path: path.read_bytes() for path in Path(recipe["output"]).rglob("*") if path.is_file()} == before


def test_metrics_that_vanish_during_a_run_are_named_with_the_checkpoint_that_stands(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(recipe["output"])
    (output.parent / "thief.py").write_text(
        "from pathlib import Path\n"
        "calls = 0\n"
        "def steal(completions):\n"
        "    global calls\n"
        "    calls += 1\n"
        f"    calls == 4 and Path({str(output / 'ppo' / 'metrics.jsonl')!r}).unlink()\n"
        "    return [1.0] * len(completions)\n"
    )
    recipe["ppo"]["rewards"][0]["function"] = f"{output.parent / 'thief.py'}:steal"
    recipe["ppo"]["saving"] = {"checkpoint_every": 1}
    assert run(recipe) == 2
    message = said(capsys)
    assert "metrics.jsonl cannot be written (No such file" in message
    assert f"The newest checkpoint is {output / 'ppo' / 'checkpoints'}" in message


def test_run_goes_on_with_its_states_in_another_place(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe["model"]["form"] = {"type": "hydra", "unfrozen_layers": 1}
    assert run(recipe) == 0
    folder = Path(recipe["output"]) / "ppo"
    result = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").unlink()
    assert run(recipe, "--model.form.offload", "true") == 0
    assert (folder / "evaluation.json").read_text() == result
    assert load_recipe(folder.parent / "recipe.yaml").model.form == HydraForm(unfrozen_layers=1, offload=True)
    capsys.readouterr()
    assert run(recipe, "--model.form.value", "branch") == 2
    told = said(capsys)
    assert "model.form.value: head ≠ branch" in told
    assert "offload" not in told


def test_recipe_that_stopped_before_training_can_be_mended_in_place(recipe: Recipe) -> None:
    mistyped = {**recipe, "model": {"path": recipe["model"]["path"] + "x"}}
    assert run(mistyped) == 2
    assert run(recipe) == 0


def test_output_that_is_a_file_is_refused(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    Path(recipe["output"]).write_text("mine")
    assert run(recipe) == 2
    assert "is a file" in said(capsys)
    assert Path(recipe["output"]).read_text() == "mine"


def test_finished_run_says_so_and_trains_nothing_again(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe) == 0
    metrics = Path(recipe["output"]) / "ppo/metrics.jsonl"
    before = metrics.read_bytes()
    assert run(recipe, command="run") == 0
    assert "ppo is finished" in capsys.readouterr().err
    assert metrics.read_bytes() == before


def test_run_goes_on_at_the_unfinished_section(recipe: Recipe) -> None:
    assert run(recipe) == 0
    folder = Path(recipe["output"]) / "ppo"
    result = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").unlink()
    assert run(recipe, command="run") == 0
    assert json.loads((folder / "evaluation.json").read_text()) == result
    assert {"score"} == result["metrics"].keys()
    assert result["metrics"]["score"]["primary"] is True


def test_dry_run_prints_the_plan_and_writes_nothing(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--dry-run", "--ppo.kl.coefficient", "0.2") == 0
    plan = capsys.readouterr().out
    for words in (
        "coefficient* 0.2 (0.05)",
        "4 answers = 4 prompts × 1",
        "learning_rate* 3e-06 (none)",
        "(33 of them in the value head)",
        "frozen (with the reference's own copy of what is trained)",
        "memory     in MB, of one process, above what the imports take; form full",
        "weights",
        "gradients",
        "optimizer",
        "KV cache",
        "activations",
        "next tokens",
        "the most that lives at once: loading",
        "hydra: k = 1 layers trained, value head",
        "separate: four whole models",
        "26 rows read",
        "prompts (all there are of the 500 wanted), answered before and after",
        "context 64",
    ):
        assert words in plan, plan
    assert "give no verdict" not in plan
    assert run(recipe, "--dry-run", "--data.prompts.held_out.percent", "18") == 0
    assert "rows: fewer than 6 give no verdict" in capsys.readouterr().out
    assert not Path(recipe["output"]).exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "form",
    [
        {"type": "lora", "rank": 4},
        {"type": "lora", "rank": 4, "unfrozen_layers": 1},
        {"type": "hydra", "unfrozen_layers": 1},
        {"type": "hydra", "unfrozen_layers": 1, "value": "branch"},
    ],
    ids=lambda form: "-".join(str(value) for value in form.values()),
)
def test_dry_run_plans_the_memory_of_every_form(
    form: dict[str, Any], precision: str, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["model"] |= {"form": form, "precision": precision}
    assert run(recipe, "--dry-run") == 0
    plan = capsys.readouterr().out
    memory = plan[plan.index("memory     in MB") : plan.index("answers    up to")]
    assert "full: every layer trained" in memory
    assert ("trunk cache" in memory) == ("unfrozen_layers" in form)
    assert max(map(len, memory.splitlines())) <= 120


def test_evaluations_between_before_and_after_are_logged(recipe: Recipe) -> None:
    recipe["ppo"]["evaluation"] = {"every": 2}
    assert run(recipe) == 0
    rows = [json.loads(line) for line in (Path(recipe["output"]) / "ppo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/score" in row] == [1]


def test_second_process_in_one_folder_is_refused_and_writes_nothing(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    output = Path(recipe["output"])
    output.mkdir()
    with (output / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        json.dump({"pid": 77, "host": "there", "started": "2026-01-02T03:04:05+00:00"}, other)
        other.flush()
        for command in ("ppo", "run"):
            assert run(recipe, command=command) == 2
            assert "is in use by process 77 on there, started 2026-01-02" in said(capsys)
        assert run(recipe, "--dry-run") == 0
    assert [path.name for path in output.iterdir()] == [".lock"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"metrics": 3}', '{"metrics": {"score": [1, 2], "kl": [1]}}'])
def test_damaged_answers_before_training_are_measured_again(
    content: str, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(recipe["output"]) / "ppo/before.json"
    before.parent.mkdir(parents=True)
    before.write_text(content)
    assert run(recipe) == 0
    assert "before.json is damaged" in capsys.readouterr().err
    assert "score" in json.loads(before.read_text())["metrics"]


def test_damaged_result_of_a_training_is_named_and_may_be_deleted(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["model"]["precision"] = "auto"
    assert run(recipe) == 0
    folder = Path(recipe["output"]) / "ppo"
    whole = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").write_text(whole[:20])
    for command in ("ppo", "run"):
        assert run(recipe, command=command) == 2
        assert "evaluation.json is damaged" in said(capsys)
    (folder / "evaluation.json").unlink()
    (folder / "config.yaml").write_text("")
    (folder / "inputs.json").write_text('{"inputs": {"seed": 3}}')
    assert run(recipe) == 0
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(whole)
    capsys.readouterr()
    (folder.parent / "recipe.yaml").write_text("\0")
    assert run(recipe) == 2
    assert f"Delete {folder.parent / 'recipe.yaml'}" in said(capsys)
