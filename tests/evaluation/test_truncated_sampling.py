"""Under top-k or top-p nothing is called KL: the answers are no samples of the distribution that the KL is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.compare import CompareConfig, ShareConfig
from hydralign.config.ppo import PPOConfig
from hydralign.data import PromptStream
from hydralign.errors import ConfigError
from hydralign.evaluation.comparison import compare_answers, comparison_record
from hydralign.evaluation.held_out import answer_held_out
from hydralign.methods.advantages import estimate
from hydralign.methods.ppo import PPOParts, sample_rows, train
from hydralign.models.policy import Policy
from hydralign.rewards.combine import RewardTerm
from hydralign.rollout import collect
from hydralign.runs.compare import require_shares
from hydralign.testing import LengthReward, tiny_policy, tiny_prompts
from hydralign.tracking import JsonLines, Trackers
from hydralign.types import SamplingParams
from tests.conftest import shake

LENGTH = RewardTerm("length", LengthReward(2))
WHOLE = SamplingParams(max_new_tokens=6, seed=2)
CUT = [SamplingParams(max_new_tokens=6, seed=2, top_k=3), SamplingParams(max_new_tokens=6, seed=2, top_p=0.2)]


@pytest.fixture
def moved(tokenizer: Any) -> Policy:
    """A policy that is flatter than its reference, so that its likeliest tokens are less likely than there."""
    policy = tiny_policy(tokenizer=tokenizer)
    shake(policy)
    with torch.no_grad():
        for name, parameter in policy.trained().items():
            if "ln_f" in name:
                parameter.mul_(0.3)
    return policy


@pytest.mark.parametrize("plan", CUT)
def test_gap_of_truncated_answers_is_negative_and_is_not_called_kl(plan: SamplingParams, moved: Policy) -> None:
    prompts = tiny_prompts(moved.tokenizer, *(f"this {n}" for n in range(30)))
    whole, cut = (answer_held_out(moved, prompts, [LENGTH], some) for some in (WHOLE, plan))
    assert whole.metrics.keys() == {"score", "kl", "tokens", "finished"}
    assert cut.metrics.keys() == {"score", "logprob_gap", "tokens", "finished"}
    assert sum(whole.metrics["kl"]) > 0 > sum(cut.metrics["logprob_gap"])
    record = comparison_record(compare_answers(cut, cut))
    assert record["facts"].keys() >= {"logprob_gap", "tokens"}
    assert "kl" not in {*record["facts"], *record["metrics"]}
    assert "no KL, since top-k or top-p" in record["facts"]["logprob_gap"]["sentence"]


@pytest.mark.parametrize("plan", CUT)
def test_stats_and_samples_of_an_iteration_name_no_kl(plan: SamplingParams, moved: Policy) -> None:
    prompts = tiny_prompts(moved.tokenizer)
    for some, name in ((WHOLE, "kl"), (plan, "logprob_gap")):
        experience = collect(moved, prompts, [LENGTH], some)
        assert [key for key in estimate(experience).stats if key in ("objective/kl", "objective/logprob_gap")] == [
            f"objective/{name}"
        ]
        assert {"kl", "logprob_gap"} & set(sample_rows(experience, 1)[0]) == {name}


def test_adaptive_coefficient_is_refused_where_there_is_no_kl_to_follow() -> None:
    shared: dict[str, Any] = {"rewards": [{"type": "function", "function": "a.py:b"}]}
    adaptive = {"controller": {"type": "adaptive"}}
    for cut in ({"top_k": 5}, {"top_p": 0.9}):
        sampling = cut | {"allow_truncated_sampling": True}
        PPOConfig.model_validate(shared | {"sampling": sampling})
        with pytest.raises(ValueError, match=r"kl.controller is adaptive with .* do not measure one"):
            PPOConfig.model_validate(shared | {"sampling": sampling, "kl": adaptive})
    PPOConfig.model_validate(shared | {"kl": adaptive})


def test_shares_may_be_taken_of_the_gap_that_there_is() -> None:
    for name, truncated in (("kl", False), ("logprob_gap", True)):
        config = CompareConfig(shares=(ShareConfig(name="far", of=name, above=3.0),))
        require_shares(config, ["a"], [], truncated=truncated)
        with pytest.raises(ConfigError, match=f"far.*{name}"):
            require_shares(config, ["a"], [], truncated=not truncated)


def test_training_with_truncated_samples_logs_the_gap_and_no_kl(tmp_path: Path, moved: Policy) -> None:
    sampling = {"max_new_tokens": 4, "top_k": 3, "allow_truncated_sampling": True}
    settings: dict[str, Any] = {"steps": 1, "sampling": sampling, "batch": {"rows": 4, "epochs": 1, "minibatches": 1}}
    settings |= {"rewards": [{"type": "function", "function": "a.py:b"}], "optimizer": {"learning_rate": 1e-4}}
    record = JsonLines(tmp_path)
    policy = tiny_policy(tokenizer=moved.tokenizer)
    stream = PromptStream(tuple(tiny_prompts(policy.tokenizer)))
    train(PPOConfig.model_validate(settings), PPOParts(policy, stream, [LENGTH], tmp_path, Trackers(record)))
    record.close()
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"objective/logprob_gap", "ppo/policy/logprob_gap"} <= row.keys()
    assert not {"objective/kl", "ppo/policy/policykl"} & row.keys()
