"""The script that fetches film reviews, on a stand-in for the hub; and that recipes say what they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import datasets
import pytest

from hydralign.config.data import NoSplit, SourceConfig
from hydralign.data import load_demonstrations, load_labelled

ROOT = Path(__file__).parent.parent
HUB: dict[str, list[dict[str, Any]]] = {
    "train": [{"text": text, "label": label} for text, label in (("bad", 0), ("bad", 0), ("in test", 0), ("good", 1))],
    "test": [{"text": "in test", "label": 0}, {"text": "fine – “very”", "label": 1}],
    "unsupervised": [{"text": "good", "label": -1}, {"text": "unknown", "label": -1}],
}


def test_fetched_files_are_read_by_the_recipes_kinds_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("fetch_imdb", ROOT / "examples" / "fetch_imdb.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id, split: HUB[split] if hub_id == "a/b" else None)
    script.fetch("a/b", tmp_path / "imdb")
    none = NoSplit(by="none")
    train, test = (
        load_labelled(SourceConfig(source=str(tmp_path / "imdb" / f"{name}.jsonl.gz"), held_out=none)).train
        for name in ("train", "test")
    )
    assert [(row.text, row.label) for row in train] == [("bad", "0"), ("good", "1")]
    assert [(row.text, row.label) for row in test] == [("in test", "0"), ("fine – “very”", "1")]
    both = [str(tmp_path / "imdb" / f"{name}.jsonl.gz") for name in ("train", "unlabelled")]
    assert [row.completion for row in load_demonstrations(SourceConfig(source=tuple(both), held_out=none)).train] == [
        "bad",
        "good",
        "unknown",
    ]
    assert "train.jsonl.gz: 2 reviews; 2 that occur elsewhere were left out." in capsys.readouterr().out


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipe_with_data_beside_the_checkout_names_the_command_that_makes_it(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    header = text.split("\noutput:")[0]
    assert "# Needs " in header
    if "../shared/data/imdb" in text:
        assert "python examples/fetch_imdb.py stanfordnlp/imdb ../shared/data/imdb" in header
