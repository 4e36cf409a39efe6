"""Texts that are longer than what reads them: cut at the beginning, counted, said once, and told in the dry run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydralign.methods.advantages import estimate
from hydralign.rewards import ClassifierReward, RewardModel, RewardTerm
from hydralign.rollout import collect
from hydralign.runs.plans import _reward_lines
from hydralign.testing import ScriptedSampler, tiny_policy
from hydralign.types import Prompt, SamplingParams

SHORT, LONG = "the film", "the film was " * 20


def readers(bert_folder: Callable[..., Path], gpt2_folder: Callable[..., Path]) -> dict[str, Any]:
    folder = bert_folder(["no", "yes"], positions=24)
    return {
        "model": RewardModel.from_folder(gpt2_folder()),
        "joint": ClassifierReward.from_folder(folder, label="yes"),
        "lone": ClassifierReward.from_folder(folder, label="yes", text="completion"),
    }


def test_share_of_cut_texts_is_a_metric_and_one_line_says_so(
    bert_folder: Callable[..., Path],
    gpt2_folder: Callable[..., Path],
    tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terms = [RewardTerm(name, reward) for name, reward in readers(bert_folder, gpt2_folder).items()]
    terms.append(RewardTerm("function", lambda completions: [0.0] * len(completions)))
    policy = tiny_policy(tokenizer=tokenizer)
    ids = tuple(tokenizer("this").input_ids)
    prompts = [Prompt(SHORT, ids), Prompt(LONG, ids), Prompt(SHORT, ids), Prompt(SHORT, ids)]
    sampler = ScriptedSampler((tuple(tokenizer("the film").input_ids),))
    for _ in range(2):
        experience = collect(policy, prompts, terms, SamplingParams(), sampler=sampler)
    stats = estimate(experience).stats
    assert {name: value for name, value in stats.items() if name.endswith("/cut")} == {
        "reward/model/cut": 0.25,
        "reward/joint/cut": 0.25,
        "reward/lone/cut": 0.0,
    }
    said = capsys.readouterr().err
    assert said.count("1 of 4 texts are longer than the") == 2
    assert "32 tokens that the reward model reads" in said


def test_dry_run_says_how_many_prompts_are_too_long(
    bert_folder: Callable[..., Path], gpt2_folder: Callable[..., Path]
) -> None:
    terms = [RewardTerm(name, reward) for name, reward in readers(bert_folder, gpt2_folder).items()]
    lines = _reward_lines(terms, [Prompt(SHORT, ()), Prompt(LONG, ())], 8)
    assert lines[0].startswith("reward     model reads up to 32 tokens; with the longest answers 1 of 2 prompts")
    assert "1 of 2 prompts would be cut at the beginning (the longest text may have about 70)" in lines[1]
    assert lines[2] == "reward     lone reads up to 24 tokens; the longest text may have about 10"
    assert "answers may have 30 and would be cut" in _reward_lines(terms, [Prompt(SHORT, ())], 30)[2]
