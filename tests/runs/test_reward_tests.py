"""reward.test: one source or several, labels under other names, and accuracy by group in record and terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydralign.cli import main
from hydralign.config import Recipe
from hydralign.config.data import SourceConfig
from hydralign.config.reward import RewardConfig
from hydralign.config.rewards import ModelRewardConfig
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import ConfigError
from hydralign.methods.reward import Labelled
from hydralign.rewards.classifier import encode_for_classifier
from hydralign.rewards.reward_model import Encoded
from hydralign.runs.provenance import reward_results
from hydralign.runs.reward import load_reward
from hydralign.testing import tiny_model

OWN = [{"text": f"other {n}", "label": ("offensive", "fine")[n % 2]} for n in range(6)]
SUITE = [{"text": f"case {n} {'thing ' * n}", "label": n % 2, "kind": "ab"[n > 3] if n else None} for n in range(10)]
NAMES = {"1": "hate", "0": "nothate"}


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any) -> dict[str, Any]:
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"text": f"{'this' if n % 2 else 'that'} {n}", "label": ("fine", "offensive")[n % 2]} for n in range(24)]
    for name, listed in (("rows", rows), ("own", OWN), ("suite", SUITE)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    source = {"source": str(tmp_path / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 50}}
    suite = {"source": str(tmp_path / "suite.jsonl"), "by": "kind", "names": NAMES}
    section = {
        "task": {"type": "labels", "names": {"offensive": "hate", "fine": "nothate"}},
        "data": source,
        "test": [{"name": "own", "source": str(tmp_path / "own.jsonl")}, {"name": "suite", **suite}],
        "epochs": 1,
    }
    return {"output": str(tmp_path / "out"), "model": {"path": str(tmp_path / "model")}, "reward": section}


def write(recipe: dict[str, Any], folder: Path) -> str:
    (folder / "the.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "the.yaml")


def test_every_source_is_judged_and_groups_have_a_table(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(recipe, tmp_path)
    assert main(["reward", file, "--dry-run"]) == 0
    assert "test       10 rows of suite, accuracy by kind (3 values)" in capsys.readouterr().out
    assert main(["reward", file]) == 0
    said = capsys.readouterr().err
    record = json.loads((tmp_path / "out/reward/evaluation.json").read_text())
    assert record["test"] is None
    own, suite = record["tests"]["own"], record["tests"]["suite"]
    assert (own["n"], suite["n"]) == (6, 10)
    assert "groups" not in own
    assert {label: one["n"] for label, one in suite["classes"].items()} == {"hate": 5, "nothate": 5}
    assert suite["by"] == "kind"
    groups = suite["groups"]
    assert {group: one["n"] for group, one in groups.items()} == {"(none)": 1, "a": 3, "b": 6}
    assert sum(one["n"] * one["accuracy"] for one in groups.values()) == pytest.approx(10 * suite["accuracy"])
    assert "suite.jsonl: 10 rows read, 10 to test on (suite)." in said
    assert "On own rows: accuracy " in said
    table = said.split("Accuracy on suite rows by kind, with 95 % intervals:\n")[1].splitlines()
    b = groups["b"]
    assert table[2] == f"  b       {b['accuracy']:.3f}  ({b['ci_low']:.3f} to {b['ci_high']:.3f})  n = 6"
    accuracies, _ = reward_results([ModelRewardConfig(path=str(tmp_path / "out/reward/model"))])
    (lines,) = accuracies.values()
    assert [line.split(" rows ")[0].split(" on ")[1] for line in lines.splitlines()] == ["6 own", "10 suite"]


def test_one_source_without_a_name_is_the_test(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["reward"]["test"] = {"source": str(tmp_path / "suite.jsonl"), "by": "kind", "names": NAMES}
    assert main(["reward", write(recipe, tmp_path)]) == 0
    record = json.loads((tmp_path / "out/reward/evaluation.json").read_text())
    assert set(record["test"]["groups"]) == {"(none)", "a", "b"}
    assert "tests" not in record
    plain = RewardConfig(test=SourceConfig(source="a.jsonl"))  # type: ignore[arg-type]
    assert plain.test is not None
    assert not isinstance(plain.test, tuple)
    assert plain.test.source == "a.jsonl"


def test_groups_stay_with_their_rows_when_some_are_left_out(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_third(tokenizer: Any, text: str, longest: int) -> Any:
        return Encoded(()) if text.startswith("case 3") else encode_for_classifier(tokenizer, text, longest)

    monkeypatch.setattr("hydralign.runs.reward.encode_for_classifier", without_third)
    config = Recipe.model_validate(recipe).resolved()
    assert isinstance(config.reward, RewardConfig)
    test = load_reward(config, config.reward, SINGLE_PROCESS).tests[1]
    assert test.groups == ("(none)", "a", "a", "b", "b", "b", "b", "b", "b")
    assert len(test.rows) == 9
    assert [row.label for row in test.rows if isinstance(row, Labelled)] == [1, 0, 1, 1, 0, 1, 0, 1, 0]  # hate is 0


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "column": ({"by": "kid"}, r"reward.test \(name: suite\).by='kid': no row to test .*Did you mean 'kind'"),
    "name of a label": ({"names": {"1": "hat", "0": "nothate"}}, "calls '1' 'hat'.*Did you mean 'hate'"),
    "label without a name": ({"names": {"1": "hate"}}, "labels that training rows lack: '0'.*test.names"),
    "labels of their own": ({"names": {}}, "labels that training rows lack: '0', '1'.*test.names"),
    "no name": ({"name": None}, r"test is a list with the names \['own', None\]"),
    "unknown key": ({"buy": "kind"}, r"reward.test.1.buy is not a setting.*Did you mean 'by'"),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_mistake_is_refused_before_anything_is_trained(
    change: dict[str, Any], words: str, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["reward"]["test"][1] |= change
    file = write(recipe, tmp_path)
    for arguments in (["reward", file, "--dry-run"], ["reward", file]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert re.search(words, said), said
    assert not (tmp_path / "out").exists()


def test_names_of_labels_are_refused_for_comparisons() -> None:
    with pytest.raises(ConfigError, match=r"test\.names renames labels"):
        RewardConfig(test={"source": "a.jsonl", "names": NAMES})  # type: ignore[arg-type]


def test_comparisons_have_groups_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": " this", "rejected": f" {n}", "topic": "xy"[n % 2]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    recipe["reward"] |= {"task": {"type": "comparisons"}}
    recipe["reward"]["test"] = {"source": str(tmp_path / "rows.jsonl"), "by": "topic", "limit": 9}
    assert main(["reward", write(recipe, tmp_path)]) == 0
    groups = json.loads((tmp_path / "out/reward/evaluation.json").read_text())["test"]["groups"]
    assert set(groups) == {"x", "y"}
    assert sum(one["n"] for one in groups.values()) == 9


def test_hatecheck_is_read_with_its_29_functionalities(recipe: dict[str, Any], shared: Path) -> None:
    suite = {"source": str(shared / "data/hatecheck/test.jsonl.gz"), "by": "functionality", "names": NAMES}
    recipe["reward"]["test"][1] = {"name": "hatecheck", **suite}
    config = Recipe.model_validate(recipe).resolved()
    assert isinstance(config.reward, RewardConfig)
    test = load_reward(config, config.reward, SINGLE_PROCESS).tests[1]
    assert (len(test.rows), len(set(test.groups))) == (3728, 29)
    hateful = [isinstance(row, Labelled) and row.label == 0 for row in test.rows]
    assert sum(hateful) == 2563
    assert all(group.endswith("_h") is hate for group, hate in zip(test.groups, hateful, strict=True))
