"""A whole recipe on a tiny model: sft, two rewards, ppo, compare, a report; and what happens when a part is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydralign.cli import main
from hydralign.config import load_recipe
from hydralign.runs import kinds
from hydralign.runs.recipes import claim_folder, conflicts, run_section
from hydralign.runs.standing import prepare_folder
from hydralign.runs.steps import Step
from hydralign.testing import tiny_model

WORDS = ["this", "that", "thing", "other", "small", "plain", "words", "text"]


def write_recipe(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    openings = [f"{a} {b} and" for a in WORDS for b in WORDS]
    data: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": text, "completion": f" {text[:4]} words"} for text in openings],
        "comparisons": [{"prompt": text, "chosen": " plain words", "rejected": " other things"} for text in openings],
        "labelled": [{"text": f"{text} {word}", "label": i} for i, word in enumerate(WORDS[:2]) for text in openings],
        "prompts": [{"prompt": text} for text in openings],
    }
    for name, rows in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rule.py").write_text("def length(completions):\n    return [float(len(c)) for c in completions]\n")
    small = {"batch": {"rows": 8, "micro_batch_size": 3}, "evaluation": {"rows": 20, "every": 4}}
    recipe = {
        "output": str(folder / "out"),
        "model": {"path": str(folder / "model"), "precision": "fp32"},
        "data": {
            name: {"source": str(folder / f"{name}.jsonl"), "held_out": {"by": "hash", "percent": 40}} for name in data
        },
        "sft": {**small, "epochs": 4, "optimizer": {"type": "sgd", "learning_rate": 0.1}, "max_tokens": 40},
        "reward": [
            {"name": "pairs", **small, "optimizer": {"type": "sgd", "learning_rate": 0.1}},
            {
                "name": "labels",
                "task": {"type": "labels", "names": {"0": "THIS", "1": "THAT"}, "crops": {"min_tokens": 2}},
                "test": {"source": str(folder / "labelled.jsonl"), "limit": 10},
                **small,
            },
        ],
        "ppo": {
            "steps": 2,
            "rewards": [{"type": "model", "path": "{output}/reward/pairs/model", "name": "pairs"}],
            "sampling": {"max_new_tokens": 5},
            "batch": {"rows": 8, "epochs": 1, "minibatches": 2, "micro_batch_size": 4},
            "evaluation": {"prompts": 10},
        },
        "compare": {
            "prompts": 20,
            "precision": "fp32",
            "judges": [
                {"type": "classifier", "path": "{output}/reward/labels/model", "label": "THIS", "output": "log_odds"},
                {"type": "function", "function": f"{folder / 'rule.py'}:length"},
            ],
            "shares": [{"name": "mostly this", "of": "judge/THIS"}],
            "notes": ["Nobody judged <this>."],
        },
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The folder of a recipe that was run whole."""
    folder = tmp_path_factory.mktemp("chain")
    assert main(["run", str(write_recipe(folder, tokenizer))]) == 0
    return folder


def test_every_section_leaves_its_folder(finished: Path) -> None:
    for section in ("sft", "reward/pairs", "reward/labels", "ppo", "compare"):
        folder = finished / "out" / section
        assert {"config.yaml", "evaluation.json"} <= {file.name for file in folder.iterdir()}
        assert (folder / "model" / "config.json").exists() == (section != "compare")
    assert load_recipe(finished / "out" / "recipe.yaml") == load_recipe(finished / "recipe.yaml")


def test_report_tells_every_metric_with_its_interval(finished: Path) -> None:
    report = json.loads((finished / "out" / "report.json").read_text())
    assert list(report["metrics"]) == ["score", "judge/THIS", "judge/length", "mostly this"]
    for name, metric in report["metrics"].items():
        assert metric["n"] == 20
        assert metric["difference"]["ci_low"] <= metric["difference"]["mean"] <= metric["difference"]["ci_high"]
        assert metric["verdict"] in ("better", "worse", "not distinguishable")
        assert metric["primary"] is (name == "score")
        assert {"mean", "median", "std"} == metric["before"].keys() == metric["after"].keys()
    assert {"kl", "tokens", "finished"} <= report["facts"].keys()
    assert report["facts"]["kl"]["before"]["mean"] == pytest.approx(0, abs=1e-4)
    assert abs(report["facts"]["kl"]["after"]["mean"]) > 1e-4
    page = (finished / "out" / "report.html").read_text()
    assert "Nobody judged &lt;this&gt;." in page


def test_result_of_a_reward_section_has_accuracy_interval_ties_and_calibration(finished: Path) -> None:
    result = json.loads((finished / "out/reward/pairs/evaluation.json").read_text())
    held_out = result["held_out"]
    assert held_out["ci_low"] <= held_out["accuracy"] <= held_out["ci_high"]
    assert held_out["calibration"]["bins"]
    assert result["temperature"] is None
    labels = json.loads((finished / "out/reward/labels/evaluation.json").read_text())
    assert labels["temperature"] > 0
    assert labels["test"]["n"] > 2


def test_second_run_finds_everything_finished(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(finished / "recipe.yaml")]) == 0
    assert capfd.readouterr().err.count("is finished") + capfd.readouterr().out.count("is finished") in (5, 0)


def test_section_that_waits_for_another_says_so(
    tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, tokenizer)
    assert main(["ppo", str(path)]) == 2
    error = capfd.readouterr().err
    assert "ppo needs" in error
    assert "hydralign run" in error
    assert main(["run", str(path), "--dry-run"]) == 0
    told = capfd.readouterr().out
    assert "learned: ' this words" in told
    assert "waits for" in told
    assert not (tmp_path / "out" / "ppo").exists()


def test_sections_and_data_may_be_added_to_a_recipe_whose_first_sections_are_done(
    tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, tokenizer)
    whole = load_recipe(path)
    alone = whole.model_copy(
        update={
            "reward": None,
            "ppo": None,
            "compare": None,
            "data": whole.data.model_copy(update={"comparisons": None, "labelled": None, "prompts": None}),
        }
    )
    run_section(alone, "sft")
    output = Path(whole.output)
    assert conflicts(alone, whole, output) == []
    other = load_recipe(path, ["--sft.epochs", "2"])
    assert conflicts(alone, other, output) == ["sft.epochs: 4.0 ≠ 2.0"]
    assert conflicts(alone, load_recipe(path, ["--seed", "5"]), output) == ["seed: 0 ≠ 5"]
    assert main(["sft", str(path), "--sft.epochs", "2"]) == 2
    assert "holds the results of another recipe" in capfd.readouterr().err


def test_section_that_was_dropped_and_comes_back_changed_is_noticed(
    tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, tokenizer)
    none = {"reward": None, "ppo": None, "compare": None}
    run_section(load_recipe(path).model_copy(update=none), "sft")
    claim_folder(tmp_path / "out", load_recipe(path).model_copy(update=none | {"sft": None}))
    assert main(["sft", str(path)]) == 0
    claim_folder(tmp_path / "out", load_recipe(path).model_copy(update=none | {"sft": None}))
    capfd.readouterr()
    assert main(["sft", str(path), "--sft.epochs", "2"]) == 2
    assert "sft.epochs: 4.0 ≠ 2.0" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("share", "judges", "told"),
    [
        ({"name": "good", "of": "judge/lenght"}, True, "Did you mean 'judge/length'?"),
        ({"name": "good", "of": "reward/length"}, True, "'reward/length', which is no metric here"),
        ({"name": "kl"}, True, "a second metric or fact called 'kl'"),
        ({"name": "judge/length"}, True, "a second metric or fact called 'judge/length'"),
        ({"name": "good", "of": "reward/length"}, False, "Known here: finished, kl, score, tokens."),
    ],
)
def test_wrong_share_is_told_before_anything_is_answered(
    share: dict[str, Any], judges: bool, told: str, tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    sides = {side: str(tmp_path / "model") for side in ("before", "after")}
    length = [{"type": "function", "function": f"{tmp_path / 'rule.py'}:length"}]
    compare = {**sides, "score": length, "judges": length if judges else [], "shares": [share]}
    path = write_recipe(tmp_path, tokenizer, sft=None, reward=None, ppo=None, compare=compare)
    assert main(["compare", str(path)]) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "out" / "compare").exists()


def test_list_items_need_names_of_their_own(tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, tokenizer, reward=[{"name": "a"}, {"name": "a"}])
    assert main(["run", str(path)]) == 2
    assert "Give every item of reward another name" in capfd.readouterr().err


def test_lora_all_the_way_starts_ppo_from_the_sft_adapter(tmp_path: Path, tokenizer: Any) -> None:
    model = {"path": str(tmp_path / "model"), "form": {"type": "lora", "rank": 4}}
    path = write_recipe(tmp_path, tokenizer, model=model)
    recipe = load_recipe(path)
    assert recipe.ppo is not None
    assert recipe.ppo.model is not None
    assert recipe.ppo.model.form.adapter == str(tmp_path / "out/sft/model")  # type: ignore[union-attr]
    assert main(["run", str(path)]) == 0
    assert (tmp_path / "out/ppo/model/adapter_config.json").exists()
    assert (tmp_path / "out/reward/pairs/model/model.safetensors").exists()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["metrics"]["score"]["n"] == 20


def test_lora_sft_goes_on_in_the_hydra_form_from_its_merged_adapter(
    tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(tmp_path / "model"), tmp_path / "out"
    path = write_recipe(
        tmp_path, tokenizer, model={"path": folder, "form": {"type": "hydra", "unfrozen_layers": 1}}, reward=None
    )
    values = yaml.safe_load(path.read_text())
    values["sft"]["model"] = {"path": folder, "form": {"type": "lora", "rank": 4}}
    values["ppo"] |= {"rewards": [{"type": "function", "function": f"{tmp_path / 'rule.py'}:length"}]}
    values["ppo"] |= {"steps": 3, "optimizer": {"learning_rate": 1e-3}, "saving": {"checkpoint_every": 1, "keep": 9}}
    values["compare"] = {"prompts": 20}
    path.write_text(yaml.safe_dump(values))
    assert main(["run", str(path), "--dry-run"]) == 0
    assert f"start      the adapter that sft makes, merged into its base {folder}" in capfd.readouterr().out
    assert main(["run", str(path)]) == 0
    assert (out / "sft/model/adapter_config.json").exists()
    assert (out / "ppo/model/model.safetensors").exists()
    assert main(["ppo", str(path), "--dry-run"]) == 0
    assert f"start      adapter {out / 'sft/model'}, merged into its base {folder}" in capfd.readouterr().out

    facts = json.loads((out / "report.json").read_text())["facts"]
    assert facts["kl"]["before"]["mean"] == pytest.approx(0, abs=1e-6)
    assert abs(facts["kl"]["after"]["mean"]) > 1e-6
    kl = [row["objective/kl"] for row in _steps(out)]
    assert len(kl) == 3
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert abs(kl[2]) > 1e-6

    # A run that stopped after its second iteration goes on to the same end.
    weights = (out / "ppo/model/model.safetensors").read_bytes()
    for gone in ("ppo/evaluation.json", "ppo/checkpoints/step-3", "ppo/model", "ppo/after.json"):
        shutil.rmtree(out / gone) if (out / gone).is_dir() else (out / gone).unlink()
    assert main(["ppo", str(path)]) == 0
    assert (out / "ppo/model/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(("form", "told"), [("hydra", 1), ("full", 0), ("lora", 0)])
def test_plan_says_that_the_hydra_form_is_for_ppo(
    form: str, told: int, tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {"path": str(tmp_path / "model"), "form": {"type": form}}
    path = write_recipe(tmp_path, tokenizer, model=model, reward={"model": model, "freeze_layers": 1}, ppo=None)
    trained = sum(p.numel() for p in tiny_model(tokenizer).parameters())
    for section, rest in (("sft", ""), ("reward", " above the 1 of freeze_layers")):
        assert main([section, str(path), "--dry-run"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines.count(f"form       hydra is for ppo: this section trains every layer{rest}") == told
        if section == "sft":
            assert (f"parameters {trained:,} trained, 0 frozen" in lines) == (form != "lora")
            assert any("optimizer 0.0 MB: " in line for line in lines)  # sgd keeps nothing


def _steps(out: Path) -> list[dict[str, Any]]:
    """The lines of PPO's metrics."""
    return [json.loads(line) for line in (out / "ppo/metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_and_the_report_of_one(finished: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    arguments = ["--rdzv-endpoint", "127.0.0.1:0", "-m", "hydralign", "run", str(finished / "recipe.yaml")]
    done = subprocess.run(
        [*command, *arguments, "--output", str(finished / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for item in ("sft", "reward/pairs", "reward/labels"):
        one, two = (
            [json.loads(line) for line in (finished / run / item / "metrics.jsonl").read_text().splitlines()]
            for run in ("out", "two")
        )
        assert len(one) > 4
        for alone, together in zip(one, two, strict=True):
            assert together == pytest.approx(alone, abs=1e-5, rel=1e-6)
    reports = [json.loads((finished / run / "report.json").read_text()) for run in ("out", "two")]
    for name, metric in reports[0]["metrics"].items():
        assert reports[1]["metrics"][name]["after"] == pytest.approx(metric["after"], abs=1e-4), name
    samples = [json.loads((finished / run / "compare/after.json").read_text())["samples"] for run in ("out", "two")]
    assert [row["response"] for row in samples[0]] == [row["response"] for row in samples[1]]


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of the finished recipe in another place; what ppo and compare train and measure is made up."""
    shutil.copytree(finished / "out", tmp_path / "out")
    for name in ("ppo", "compare"):
        monkeypatch.setitem(kinds.SECTIONS, name, replace(kinds.SECTIONS[name], run=pretend))
    return tmp_path / "out"


def pretend(recipe: Any, step: Step, processes: Any) -> list[Any]:
    prepare_folder(recipe, step)
    for place in ("model", "checkpoints/step-1"):
        (step.folder / place).mkdir(parents=True, exist_ok=True)
    (step.folder / "model/config.json").write_text(step.config.model_dump_json())
    (step.folder / "evaluation.json").write_text("{}")
    return []


def results(output: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in output.rglob("*.json*") if path.is_file()}


def test_moved_output_is_the_same_run_and_settings_without_effect_may_change(
    finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copied.parent)
    before = results(copied)
    for output in (str(copied), "out", "./out/", str(copied)):
        options = [
            "--output",
            output,
            "--ppo.batch.micro_batch_size",
            "1",
            "--ppo.saving.keep",
            "5",
            "--ppo.evaluation.every",
        ]
        assert main(["run", str(finished / "recipe.yaml"), *options, "1"]) == 0
        assert capfd.readouterr().err.count(" is finished: ") == 5
    assert results(copied) == before


def test_comparison_of_a_deleted_model_is_made_again(
    finished: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [str(finished / "recipe.yaml"), "--output", str(copied), "--ppo.kl.coefficient", "0.2"]
    report = (copied / "report.html").read_bytes()
    shutil.rmtree(copied / "ppo")
    assert main(["compare", *command]) == 2
    assert "compare needs" in capfd.readouterr().err
    assert main(["run", *command]) == 0
    told = capfd.readouterr().err
    assert told.count("is finished") == 3
    assert f"compare is stale and to be made again, because after: {copied}/ppo/model/config.json has other" in told
    assert f"Its last result lies in {copied}/compare/previous." in told
    assert (copied / "compare/previous/report.html").read_bytes() == report
    assert not (copied / "report.html").exists()
    assert main(["run", *command]) == 0
    assert capfd.readouterr().err.count(" is finished: ") == 5


def test_training_whose_inputs_changed_is_refused_and_left_as_it_was(
    finished: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [str(finished / "recipe.yaml"), "--output", str(copied)]
    weights = copied / "reward/pairs/model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = results(copied)
    assert main(["run", *command]) == 2
    error = capfd.readouterr().err
    assert f"rewards.0.path: {weights} has other content" in error
    assert f"delete {copied / 'ppo'};" in error
    assert results(copied) == before
    assert main(["ppo", *command, "--dry-run"]) == 0
    assert "ppo is stale and a run would stop here, because rewards.0.path" in capfd.readouterr().out


def test_stale_beginning_of_a_chain_names_all_that_was_made_from_it(
    finished: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((copied / "sft/inputs.json").read_text())
    next(iter(record["inputs"]["data.demonstrations.source"]["files"].values()))["sha256"] = "other"
    (copied / "sft/inputs.json").write_text(json.dumps(record))
    assert main(["run", str(finished / "recipe.yaml"), "--output", str(copied)]) == 2
    folders = ", ".join(str(copied / name) for name in ("sft", "reward/pairs", "reward/labels", "ppo"))
    assert f"delete {folders};" in capfd.readouterr().err


def test_folder_from_before_inputs_were_recorded_counts_as_finished(
    finished: Path, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copied / "ppo/inputs.json").unlink()
    (copied / "recipe.yaml").write_text(
        (finished / "out/recipe.yaml").read_text().replace(str(finished / "out"), str(copied))
    )
    (copied / "ppo/config.yaml").write_text(
        (copied / "ppo/config.yaml").read_text().replace(str(finished / "out"), str(copied))
    )
    command = [str(finished / "recipe.yaml"), "--output", str(copied)]
    assert main(["ppo", *command]) == 0
    assert "made before inputs were recorded" in capfd.readouterr().err
    # A comparison of that time is made again once a model that it read was made since.
    (copied / "compare/inputs.json").unlink()
    for record in copied.glob("**/inputs.json"):
        record.rename(record.with_name("hidden"))
    for settings in copied.glob("**/config.yaml"):
        settings.write_text(settings.read_text().replace(str(finished / "out"), str(copied)))
    (copied / "ppo/inputs.json").write_text(json.dumps({"output": str(copied), "inputs": {}}))
    assert main(["compare", *command, "--dry-run"]) == 0
    assert f"because {copied}/ppo/model is newer" in capfd.readouterr().out


def test_finished_ppo_is_trained_longer_from_its_checkpoint(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "out", output)
    command = [str(finished / "recipe.yaml"), "--output", str(output)]
    assert main(["ppo", *command, "--ppo.steps", "1"]) == 2
    capfd.readouterr()
    assert main(["ppo", *command, "--ppo.steps", "3"]) == 0
    told = capfd.readouterr().err
    assert "ppo is to be trained longer: steps 2 → 3" in told
    assert "Resuming from step-2" in told
    assert [row["step"] for row in _steps(output)] == [0, 1, 2]
    for name in ("evaluation.json", "after.json"):
        assert (output / "ppo/previous" / name).read_bytes() == (finished / "out/ppo" / name).read_bytes()
        assert (output / "ppo" / name).read_bytes() != (finished / "out/ppo" / name).read_bytes()
    assert main(["compare", *command, "--ppo.steps", "3", "--dry-run"]) == 0
    assert "compare is stale and to be made again" in capfd.readouterr().out


def test_start_that_failed_stands_in_no_way(
    finished: Path, copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "ppo")
    shutil.rmtree(copied / "compare")
    command = ["run", str(finished / "recipe.yaml"), "--output", str(copied)]
    mistyped = ["--data.prompts.source", str(tmp_path / "absent.jsonl"), "--ppo.steps", "9"]
    (copied / "ppo").mkdir()
    (copied / "ppo/before.json").write_text("measured with other settings")
    claim_folder(copied, load_recipe(finished / "recipe.yaml", ["--output", str(copied), *mistyped]))
    assert main(command) == 0
    assert (copied / "ppo/evaluation.json").exists()


def test_sft_for_more_epochs_goes_on_and_what_was_made_from_it_is_stale(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "out", output)
    command = [str(finished / "recipe.yaml"), "--output", str(output), "--sft.epochs", "5"]
    assert main(["sft", *command]) == 0
    assert "sft is to be trained longer: epochs 4 → 5" in capfd.readouterr().err
    assert (output / "sft/previous/evaluation.json").exists()
    before = (finished / "out/sft/before.json").read_bytes()
    assert (output / "sft/before.json").read_bytes() == before
    assert main(["run", *command]) == 2
    assert f"reward/pairs in {output}/reward/pairs is stale" in capfd.readouterr().err


@pytest.fixture
def whole(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished output, to be gone on with for real."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


def test_another_title_or_note_only_writes_the_report_again(
    finished: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: text for name, text in results(whole).items() if "report" not in name and "inputs" not in name}
    arguments = ["--output", str(whole), "--compare.title", "Another", "--compare.notes", "[Noted.]"]
    assert main(["run", str(finished / "recipe.yaml"), *arguments]) == 0
    assert {name for name, text in results(whole).items() if before.get(name, text) != text} == {
        str(whole / "compare/evaluation.json")
    }
    page = (whole / "report.html").read_text()
    assert "Another" in page
    assert "Noted." in page
    assert not (whole / "compare/previous").exists()
    capfd.readouterr()
    assert main(["run", str(finished / "recipe.yaml"), *arguments]) == 0
    assert capfd.readouterr().err.count("is finished") == 5


def test_damaged_result_of_a_comparison_is_made_again(finished: Path, whole: Path) -> None:
    (whole / "compare/evaluation.json").write_text('{"metrics":')
    with (whole / "ppo/metrics.jsonl").open("a") as file:
        file.write('{"step":')
    assert main(["run", str(finished / "recipe.yaml"), "--output", str(whole)]) == 0
    assert "score" in json.loads((whole / "compare/evaluation.json").read_text())["metrics"]
    assert (whole / "compare/previous/evaluation.json").exists()
