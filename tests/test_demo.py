"""The demonstration's parts: its rule, its noise, its texts, its recipe. The whole of it is a slow test."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from hydralign.cli import main
from hydralign.demo.annotator import gold_rule, prefers_first
from hydralign.demo.run import DEMONSTRATIONS, WRONG, demo_recipe, write_texts
from hydralign.demo.texts import demonstrations, prompts
from hydralign.models import load_policy


@pytest.mark.parametrize(
    ("text", "finished", "score"),
    [
        ("", True, 0.0),
        (" was great.", True, 1.0),
        (" was great, great, GREAT.", True, 1.0),
        (" is good, lovely, superb and perfect.", True, 3.0),
        (" is good but boring.", True, 0.0),
        (" is awful and", False, -2.0),
    ],
)
def test_gold_rule_counts_different_words_and_endings(text: str, finished: bool, score: float) -> None:
    assert gold_rule([text], [finished]) == [score]


def test_annotator_errs_as_often_as_it_is_told_to() -> None:
    draw = random.Random(0)
    chosen = sum(prefers_first(2.0, 1.0, wrong=WRONG, draw=draw) for _ in range(4000))
    assert chosen / 4000 == pytest.approx(0.9, abs=0.015)
    equal = sum(prefers_first(1.0, 1.0, wrong=WRONG, draw=draw) for _ in range(4000))
    assert equal / 4000 == pytest.approx(0.5, abs=0.025)


def test_demonstrations_praise_about_as_often_as_they_complain() -> None:
    pairs = list(demonstrations(prompts()))
    assert len({prompt for prompt, _ in pairs}) == len(pairs) > 2000
    scores = gold_rule([text for _, text in pairs], [True] * len(pairs))
    assert sum(scores) / len(scores) == pytest.approx(0, abs=0.1)
    assert sum(score > 0 for score in scores) / len(scores) == pytest.approx(0.36, abs=0.08)


def test_prompts_to_answer_were_not_demonstrated(tmp_path: Path) -> None:
    write_texts(tmp_path)
    shown, asked = (
        [json.loads(line)["prompt"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("demonstrations.jsonl", "prompts.jsonl")
    )
    assert len(shown) == DEMONSTRATIONS
    assert not set(shown) & set(asked)


def test_recipe_says_that_the_annotator_is_simulated_and_its_model_is_there() -> None:
    recipe = demo_recipe(["--output", "elsewhere"])
    assert recipe.output == "elsewhere"
    assert recipe.compare is not None
    assert "simulated" in recipe.compare.notes[0]
    assert recipe.compare.prompts >= 500
    assert recipe.model.path is not None
    policy = load_policy(recipe.model.path)
    parameters = sum(p.numel() for name, p in policy.trained().items() if not name.startswith("value_head"))
    assert parameters <= 5_000_000
    size = sum(file.stat().st_size for file in Path(recipe.model.path).iterdir())
    assert size <= 12 * 2**20


@pytest.mark.slow
def test_demonstration_ends_better_on_the_gold_rule(tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    score = report["metrics"]["score"]
    assert (score["verdict"], score["primary"]) == ("better", True)
    assert score["n"] >= 500
    assert (tmp_path / "demo" / "report.html").stat().st_size < 2_000_000
