"""Held-out answers: the same whatever the chunks, gaps kept as gaps, and a record in plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydralign.errors import NonFiniteError, RewardError
from hydralign.evaluation.comparison import compare_answers, comparison_record
from hydralign.evaluation.held_out import Answers, answer_held_out
from hydralign.rewards.combine import RewardTerm
from hydralign.testing import LengthReward, tiny_policy, tiny_prompts
from hydralign.types import Prompt, SamplingParams
from tests.conftest import shake

PLAN = SamplingParams(max_new_tokens=6, seed=2)
LENGTH = RewardTerm("length", LengthReward(2))


@pytest.fixture
def many(tokenizer: Any) -> list[Prompt]:
    return tiny_prompts(tokenizer, *("that and this thing of words"[:n] for n in range(1, 20)))


def first_five(prompts: Sequence[str]) -> list[float | None]:
    return [float(len(p)) if len(p) <= 5 else None for p in prompts]


def test_chunks_change_no_number(many: list[Prompt], tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    shake(policy)
    whole = answer_held_out(policy, many, [LENGTH], PLAN)
    parts = answer_held_out(policy, many, [LENGTH], replace(PLAN, decode_batch_size=4))
    assert whole.metrics.keys() == {"score", "kl", "tokens", "finished"}
    for name, values in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx(values, abs=1e-4), name
    assert [row["response"] for row in parts.samples] == [row["response"] for row in whole.samples]


def test_reward_that_skips_a_whole_chunk_leaves_gaps(many: list[Prompt], tokenizer: Any, tmp_path: Path) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    terms = [LENGTH, RewardTerm("rare", first_five)]
    before = answer_held_out(policy, many, terms, replace(PLAN, decode_batch_size=4))
    assert [x for x in before.metrics["reward/rare"] if not math.isnan(x)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    before.save(tmp_path / "before.json")
    stored = json.loads((tmp_path / "before.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["metrics"]["reward/rare"][5:] == [None] * 14
    again = Answers.load(tmp_path / "before.json")
    comparison = compare_answers(again, before)
    differences = {d.metric: d for d in comparison.metrics}
    assert differences["reward/rare"].n == 5
    assert differences["score"].n == 19
    record = comparison_record(comparison)
    assert record["metrics"]["score"]["verdict"] == "not distinguishable"
    assert record["facts"].keys() == {"kl", "tokens", "finished"}


def test_reward_that_applies_to_no_held_out_prompt_is_refused(many: list[Prompt], tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    with pytest.raises(RewardError, match="None for all 14 rows"):
        answer_held_out(policy, many[5:], [RewardTerm("rare", first_five)], PLAN)


def test_poisoned_reward_names_itself(many: list[Prompt], tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    nan = RewardTerm("nan", lambda completions: [math.nan] * len(completions))
    with pytest.raises(NonFiniteError) as caught:
        answer_held_out(policy, many, [nan], PLAN)
    assert caught.value.where == "reward/nan"
