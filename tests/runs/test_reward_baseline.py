"""What a reward section says of a classifier that is no better than a constant answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config import Recipe
from hydralign.distributed import SINGLE_PROCESS
from hydralign.methods.reward import Judged
from hydralign.runs.kinds import all_steps
from hydralign.runs.reward import run_reward
from hydralign.runs.reward_record import reward_record, sentence
from hydralign.testing import tiny_model

LABELS = ("fine", "offensive")


def judged(choices: list[int], labels: list[int]) -> Judged:
    label_N, choice_N = torch.tensor(labels), torch.tensor(choices)
    ones_N = torch.full((len(labels),), 0.8, dtype=torch.float64)
    return Judged((choice_N == label_N).double(), ones_N, ones_N, label_N=label_N, choice_N=choice_N)


def test_constant_classifier_is_told_beside_its_baseline() -> None:
    constant = judged([1] * 50, [1] * 39 + [0] * 11)
    record = json.loads(json.dumps(reward_record(constant, LABELS)))
    assert record["baseline"] == {
        "answer": "always naming 'offensive'",
        "accuracy": 0.78,
        "difference": {"mean": 0.0, "ci_low": 0.0, "ci_high": 0.0},
        "verdict": "not distinguishable",
    }
    assert (record["accuracy"], record["balanced_accuracy"]) == (0.78, 0.5)
    assert record["classes"]["fine"] | {"ci_high": 0} == {"n": 11, "chosen": 0, "recall": 0, "ci_low": 0, "ci_high": 0}
    lines = sentence(constant, LABELS).splitlines()
    assert lines[1] == (
        "Always naming 'offensive' gives 0.780, balanced accuracy 0.500. Recall: fine 0.000 (n = 11), offensive 1.000 "
        "(n = 39)."
    )
    assert lines[2].startswith("Warning: Accuracy 0.780 is not distinguishable from 0.780")
    assert lines[3].startswith("Warning: Never named: 'fine' (11 rows)")


def test_good_classifier_gets_no_warning() -> None:
    good = judged([1] * 39 + [0] * 10 + [1], [1] * 39 + [0] * 11)
    assert reward_record(good, LABELS)["warnings"] == []
    assert "Warning" not in sentence(good, LABELS)


@pytest.mark.parametrize("kind", ["labels", "comparisons"])
def test_run_that_learns_nothing_is_not_called_better(
    kind: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows: list[dict[str, str]] = [
        {"text": f"this {n} {'thing ' * (n % 7)}", "label": "ab"[n % 5 == 0]} for n in range(40)
    ]
    if kind == "comparisons":
        rows = [{"prompt": f"q{n}", "chosen": " this", "rejected": f" that{n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": str(tmp_path / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 50}}
    section = {"task": {"type": kind}, "data": source, "epochs": 1, "optimizer": {"learning_rate": 1e-12}}
    recipe = Recipe.model_validate(
        {"output": str(tmp_path / "out"), "model": {"path": str(tmp_path / "model")}, "reward": section}
    ).resolved()
    (step,) = all_steps(recipe)
    run_reward(recipe, step, SINGLE_PROCESS)
    record = json.loads((tmp_path / "out/reward/evaluation.json").read_text())
    assert ": better" not in record["sentence"]
    baseline = record["held_out"]["baseline"]
    wanted = ("always naming 'a'", 0.8) if kind == "labels" else ("guessing", 0.5)
    assert (baseline["answer"], baseline["accuracy"]) == wanted
    assert ("classes" in record["held_out"]) is (kind == "labels")
    said = capsys.readouterr().err
    assert f"{wanted[0][:1].upper()}{wanted[0][1:]} gives {wanted[1]:.3f}" in said
