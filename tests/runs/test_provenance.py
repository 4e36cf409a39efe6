"""A report names the file that its prompts came from, and says how good the models that scored them are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hydralign.config.data import PromptSourceConfig
from hydralign.config.rewards import ClassifierRewardConfig, FunctionRewardConfig, ModelRewardConfig
from hydralign.runs.provenance import held_out_source, reward_results


def apart(source: str | list[str]) -> dict[str, Any]:
    return {"held_out": {"by": "source", "source": source}}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"source": "train.jsonl"}, "train.jsonl"),
        ({"source": "train.jsonl", **apart("test.jsonl")}, "test.jsonl"),
        ({"source": ["train.jsonl", "test.jsonl"]}, "train.jsonl, test.jsonl"),
        ({"source": "train.jsonl", **apart(["test.jsonl", "b.jsonl"])}, "test.jsonl, b.jsonl"),
        ({"source": "someone/films", "split": "validation"}, "someone/films, split validation"),
        ({"source": "someone/films", **apart("someone/films")}, "someone/films, split test"),
    ],
)
def test_prompts_are_named_after_the_file_that_they_were_read_from(
    settings: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text("")
    assert held_out_source(PromptSourceConfig.model_validate(settings)) == told


def test_reward_models_of_this_library_are_told_with_their_baseline(tmp_path: Path) -> None:
    held_out = {"accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 90}
    test = held_out | {
        "accuracy": 0.74,
        "n": 1000,
        "baseline": {"answer": "always naming 'offensive'", "accuracy": 0.78},
        "balanced_accuracy": 0.51,
        "warnings": ["Never named: 'fine'."],
    }
    for name, record in {
        "tested": {"held_out": held_out, "test": test},
        "older": {"held_out": held_out, "test": None},
        "broken": {"held_out": {}},
        "sft": {"loss": 1.0},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(record))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/evaluation.json").write_text('{"held_out": {"acc')
    paths = [str(tmp_path / name / "model") for name in ("tested", "older", "broken", "sft", "cut", "elsewhere")]
    terms = [ClassifierRewardConfig(path=paths[0], label="fine"), *(ModelRewardConfig(path=path) for path in paths)]
    told, warnings = reward_results([FunctionRewardConfig(function="a:b"), *terms, ModelRewardConfig(path="a/hub-id")])
    assert told == {
        f"reward model {tmp_path / 'tested'}": (
            "accuracy 0.740 on 1,000 test rows (95 % interval 0.400 to 0.600); always naming 'offensive' gives 0.780; "
            "balanced accuracy 0.510"
        ),
        f"reward model {tmp_path / 'older'}": "accuracy 0.500 on 90 held-out rows (95 % interval 0.400 to 0.600)",
    }
    assert warnings == [f"reward model {tmp_path / 'tested'}: Never named: 'fine'."]
