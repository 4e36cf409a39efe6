"""The demonstration's parts: its rule, its noise, its texts, its recipe. The whole of it is a slow test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydralign.cli import main
from hydralign.demo.annotator import Answer, gold_rule, prefers_first
from hydralign.demo.run import (
    ANNOTATION,
    DEMONSTRATIONS,
    WRONG,
    compared,
    demo_recipe,
    sampled_answers,
    write_texts,
)
from hydralign.demo.texts import demonstrations, prompts
from hydralign.generation import sample
from hydralign.models import load_policy
from hydralign.testing import tiny_policy, tiny_prompts
from hydralign.types import SamplingParams


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


GOOD, DULL, PLAIN, QUIET = (Answer(f" was {word}.", True) for word in ("good", "dull", "long", "short"))


def test_annotator_errs_as_often_as_it_is_told_to() -> None:
    prompts = [f"prompt {n}" for n in range(4000)]
    chosen = sum(prefers_first(prompt, GOOD, DULL, wrong=WRONG, seed=0) for prompt in prompts)
    assert chosen / 4000 == pytest.approx(0.9, abs=0.015)
    equal = sum(prefers_first(prompt, PLAIN, QUIET, wrong=WRONG, seed=0) for prompt in prompts)
    assert equal / 4000 == pytest.approx(0.5, abs=0.025)


def test_label_of_a_pair_hangs_on_nothing_but_the_pair_and_the_seed() -> None:
    pairs = [(f"prompt {n}", *sides) for n in range(100) for sides in ((GOOD, DULL), (PLAIN, QUIET))]

    def chosen(pairs: list[tuple[str, Answer, Answer]], seed: int = 0) -> dict[str, str]:
        rows = [compared(*pair, seed=seed) for pair in pairs]
        return {row["prompt"] + row["chosen"] + row["rejected"]: row["chosen"] for row in rows}

    labels = chosen(pairs)
    assert chosen(pairs[::-1]) == labels
    assert chosen([(prompt, second, first) for prompt, first, second in pairs]) == labels
    fewer = chosen(pairs[:20] + pairs[21:])
    assert len(labels) - len(fewer) == 1
    assert fewer.items() <= labels.items()
    unfinished = [(prompt, first, Answer(second.text, False)) for prompt, first, second in pairs]
    assert chosen(pairs, seed=1) != labels != chosen(unfinished)


def test_another_opening_changes_no_other_text() -> None:
    openings = prompts()
    whole = dict(demonstrations(openings))
    assert len(set(whole.values())) > len(whole) / 2
    assert dict(demonstrations(openings[::-1][:500])).items() <= whole.items()
    assert dict(demonstrations(["A new one", *openings])).items() >= whole.items()


def test_answers_to_annotate_are_shown_as_they_come_and_keyed_by_row(
    tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    asked = tiny_prompts(tokenizer, *("that and this thing of words"[:n] for n in range(1, 12)))
    plan = SamplingParams(max_new_tokens=4, decode_batch_size=4)
    answers = sampled_answers(policy, asked, plan)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("answers 4/22")
    assert told[-1].startswith("answers 22/22")
    for side, found in enumerate(answers):
        at_once = sample(policy, asked, replace(plan.at(ANNOTATION + side), decode_batch_size=64))
        assert found == list(map(Answer, at_once.completions, at_once.finished_B.tolist()))
    assert answers[0] != answers[1]


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
