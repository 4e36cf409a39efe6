"""A recipe on an encoder–decoder: from scratch or from a folder, sft, ppo in several forms, compare, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hydralign.cli import main
from hydralign.models.folders.from_scratch import make_model, train_tokenizer

WORDS = ["this", "that", "thing", "other", "small", "plain", "words", "text"]
OPENINGS = [f"{a} {b} and" for a in WORDS for b in WORDS]


def write_recipe(folder: Path, **changes: Any) -> Path:
    rows = {
        "demonstrations": [{"prompt": text, "completion": f"{text[:4]} words"} for text in OPENINGS],
        "prompts": [{"prompt": text} for text in OPENINGS],
    }
    for name, few in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    (folder / "rule.py").write_text("def length(completions):\n    return [float(len(c)) for c in completions]\n")
    recipe = {
        "output": str(folder / "out"),
        "model": {
            "new": {"family": "t5", "layers": 2, "width": 32, "heads": 2, "context": 64, "vocabulary": 300},
            "precision": "fp32",
        },
        "data": {
            name: {"source": str(folder / f"{name}.jsonl"), "held_out": {"by": "hash", "percent": 40}} for name in rows
        },
        "sft": {
            "epochs": 12,
            "batch": {"rows": 8, "micro_batch_size": 3},
            "optimizer": {"learning_rate": 3e-3},
            "evaluation": {"rows": 20},
        },
        "ppo": {
            "steps": 2,
            "rewards": [{"type": "function", "function": f"{folder / 'rule.py'}:length"}],
            "sampling": {"max_new_tokens": 5},
            "batch": {"rows": 8, "epochs": 1, "minibatches": 2, "micro_batch_size": 4},
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"prompts": 10},
        },
        "compare": {"prompts": 20, "precision": "fp32"},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_from_scratch_through_sft_ppo_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    assert main(["run", str(recipe), "--dry-run"]) == 0
    assert main(["run", str(recipe)]) == 0
    assert main(["ppo", str(recipe), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "form full: every layer trained, and a frozen copy" in planned
    assert "lora: adapters of rank 16 on the decoder" in planned
    loss = json.loads((tmp_path / "out/sft/evaluation.json").read_text())["difference"]
    assert loss["ci_high"] < -0.5  # learned, and not by chance
    lines = [json.loads(line) for line in (tmp_path / "out/ppo/metrics.jsonl").read_text().splitlines()]
    assert abs(lines[0]["objective/kl"]) < 1e-4
    assert lines[0]["sampler/logprob_drift_max"] < 1e-4
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["metrics"]["score"]["n"] == 20
    assert "Steps done" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "form",
    [
        {"type": "hydra", "unfrozen_layers": 1},
        {"type": "lora", "rank": 4, "decoder_only": True},
        {"type": "lora", "rank": 4, "unfrozen_layers": 1},
    ],
)
def test_forms_and_methods_without_a_critic_on_a_folder(form: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(OPENINGS, vocabulary=300, family="bart")
    model = make_model(tokenizer, family="bart", layers=2, width=32, heads=2, context=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() == 2 else 1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = write_recipe(tmp_path, model={"path": str(tmp_path / "model"), "precision": "fp32", "form": form})
    settings = [
        "--sft",
        "null",
        "--ppo.advantages",
        "{type: rloo}",
        "--ppo.batch",
        "{rows: 8, samples_per_prompt: 2, epochs: 1, minibatches: 2, micro_batch_size: 4}",
    ]
    assert main(["run", str(recipe), *settings]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/ppo/metrics.jsonl").read_text().splitlines()]
    assert [line.get("trunk_passes_per_token", 0) for line in lines] == [
        pytest.approx(1.0) if "unfrozen_layers" in form else pytest.approx(0.6, abs=0.3)
    ] * 2
    # Interrupted after the first step, the run ends as the whole one did.
    again = write_recipe(tmp_path, model={"path": str(tmp_path / "model"), "precision": "fp32", "form": form})
    parted = ["--output", str(tmp_path / "parted"), "--compare", "null", *settings]
    assert main(["run", str(again), *parted, "--ppo.steps", "1", "--ppo.optimizer.decay", "constant"]) == 0
    assert main(["run", str(again), *parted, "--ppo.steps", "2", "--ppo.optimizer.decay", "constant"]) == 0
    whole = ["--output", str(tmp_path / "whole"), "--compare", "null", *settings]
    assert main(["run", str(again), *whole, "--ppo.optimizer.decay", "constant"]) == 0
    ends = [
        [json.loads(line) for line in (tmp_path / side / "ppo/metrics.jsonl").read_text().splitlines()][-1]
        for side in ("parted", "whole")
    ]
    for name in ("objective/kl", "ppo/mean_scores", "ppo/loss/policy", "ppo/policy/grad_norm"):
        assert ends[0][name] == pytest.approx(ends[1][name], abs=1e-6), name


def test_long_prompts_are_cut_where_the_recipe_says_and_answers_stay_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"{text} {'thing ' * 30}{n}", "answer": f"{text[:4]} words"} for n, text in enumerate(OPENINGS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "source": str(tmp_path / "rows.jsonl"),
        "template": "Shorten: {text}\nShort:",
        "held_out": {"by": "hash", "percent": 40},
        "too_long_prompt": "cut_start",
    }
    data = {"prompts": source, "demonstrations": {**source, "columns": {"completion": "answer"}}}
    model = {"new": {"family": "t5", "layers": 1, "width": 32, "heads": 2, "context": 24, "vocabulary": 300}}
    recipe = write_recipe(tmp_path, data=data, model={**model, "precision": "fp32"}, compare=None)
    assert main(["run", str(recipe), "--sft.epochs", "1", "--ppo.steps", "1", "--sft.max_tokens", "8"]) == 0
    shown = capsys.readouterr().err
    side = "with a prompt longer than 24 tokens, cut at the beginning"
    ahead, _, _ = shown.partition("sequences with")
    assert f"{side}, " in ahead
    assert f"{side} (held out)" in ahead
    assert "completion longer" not in ahead
    assert f"Of them 64 {side}." in shown
    # Left out, nothing stays; an error without a choice names the setting.
    for choice, said in (("leave_out", "Nothing is left to train on"), ("error", "Set too_long_prompt of its source")):
        settings = ["--output", str(tmp_path / choice), "--sft", "null", "--ppo.steps", "1"]
        model_path = ["--model", f"{{path: {tmp_path / 'out/sft/model'}, precision: fp32}}"]
        assert main(["run", str(recipe), *settings, *model_path, "--data.prompts.too_long_prompt", choice]) == 2
        assert said in capsys.readouterr().err


def test_texts_are_learned_from_their_openings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"{text} more and more of it"}) + "\n" for text in OPENINGS)
    )
    source = {
        "source": str(tmp_path / "texts.jsonl"),
        "cut": {"min_tokens": 2, "max_tokens": 4},
        "held_out": {"by": "last_percent", "percent": 30},
    }
    recipe = write_recipe(tmp_path, data={"prompts": source, "demonstrations": source}, ppo=None, compare=None)
    assert main(["sft", str(recipe), "--dry-run"]) == 0
    assert main(["sft", str(recipe), "--sft.epochs", "1"]) == 0
    shown = capsys.readouterr()
    assert "prompts of up to 64 tokens, completions of up to 64" in shown.out
    assert "64 rows read, 45 to train on, 19 held out." in shown.err
    assert "45 sequences with" in shown.err
