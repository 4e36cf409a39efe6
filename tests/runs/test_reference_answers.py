"""compare.references: ROUGE to human answers in terminal, record and report, over the prompts that have one."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import yaml

from hydralign.cli import main
from hydralign.config import Recipe
from hydralign.config.compare import CompareConfig
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import ConfigError
from hydralign.evaluation.rouge import rouge
from hydralign.runs import preflight
from hydralign.runs.kinds import all_steps
from hydralign.testing import tiny_model

ROWS = 16
LETTERS = " ".join(ascii_lowercase)
"""Something in it is also in what random weights say."""


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any) -> dict[str, Any]:
    for seed, name in enumerate(("old", "new")):
        tiny_model(tokenizer, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": f"this {n} and", "short": LETTERS if n % 4 else ""} for n in range(2 * ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rule.py").write_text("def length(completions):\n    return [float(len(c)) for c in completions]\n")
    return {
        "output": str(tmp_path / "out"),
        "model": {"path": str(tmp_path / "old")},
        "data": {
            "prompts": {"source": str(tmp_path / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 50}}
        },
        "compare": {
            "before": str(tmp_path / "old"),
            "after": str(tmp_path / "new"),
            "score": [{"type": "function", "function": f"{tmp_path / 'rule.py'}:length"}],
            "references": "short",
            "shares": [{"name": "some overlap", "of": "rouge-1"}],
            "sampling": {"max_new_tokens": 12},
        },
    }


def test_rouge_of_both_sides_is_a_metric(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "the.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(file)]) == 0
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert list(record["metrics"]) == ["score", "rouge-1", "rouge-2", "rouge-l", "some overlap"]
    for side in ("before", "after"):
        rows = json.loads((tmp_path / f"out/compare/{side}.json").read_text())["samples"]
        answers = [row["response"] for row in rows]
        humans = [[LETTERS] if int(row["query"].split()[1]) % 4 else [] for row in rows]
        counted = [value for value in rouge(answers, humans)["rouge-1"] if value == value]
        assert record["metrics"]["rouge-1"]["n"] == len(counted) == ROWS * 3 // 4
        assert record["metrics"]["rouge-1"][side]["mean"] == pytest.approx(sum(counted) / len(counted))
        assert sum(counted) > 0
        assert record["metrics"]["rouge-1"][side]["std"] >= 0
    rouge_1 = record["metrics"]["rouge-1"]
    assert rouge_1["difference"]["mean"] == pytest.approx(rouge_1["after"]["mean"] - rouge_1["before"]["mean"]) != 0
    said = capsys.readouterr().err
    assert all(f"\n{name}: " in said for name in ("rouge-1", "rouge-2", "rouge-l"))
    assert record["about"]["ROUGE"].startswith("F measure against column short; 4 of 16 prompts have none and do not")
    page = (tmp_path / "out/report.html").read_text()
    assert "ROUGE-L to the human answer" in page
    assert "<b>ROUGE.</b>" in page
    assert "A human’s answer" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": ["short", "summary"]}, "names column 'summary'"),
        ({"references": []}, "'rouge-1', which is no metric here"),
        ({"shares": [{"name": "rouge-l", "of": "score"}]}, "second metric or fact called 'rouge-l'"),
    ],
)
def test_mistake_is_refused_before_anything_is_sampled(
    change: dict[str, Any], words: str, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["compare"] |= change
    file = tmp_path / "the.yaml"
    file.write_text(yaml.safe_dump(recipe))
    for arguments in (["compare", str(file), "--dry-run"], ["compare", str(file)]):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_column_is_missed_where_only_the_head_of_the_data_is_looked_at(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "HEAD", 4)
    recipe["compare"]["references"] = ["short", "summary"]
    settings = Recipe.model_validate(recipe)
    with pytest.raises(ConfigError, match="names column 'summary'.*Columns here: prompt, short"):
        preflight.check_steps(settings, all_steps(settings), ["compare"], SINGLE_PROCESS)


def test_one_name_stands_for_a_list_of_one() -> None:
    assert CompareConfig.model_validate({"references": "summary"}).references == ("summary",)
    assert CompareConfig.model_validate({"references": ["a", "b"]}).references == ("a", "b")
