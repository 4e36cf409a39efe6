"""Scores to rewards: where the score lands, the penalty for answers without end, KL names and signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from hydralign.distributed import Distributed
from hydralign.errors import ConfigError
from hydralign.generation.sampler import sample
from hydralign.methods.advantages import GAE, AdvantageEstimator, GroupNormalised, LeaveOneOut, estimate
from hydralign.models import make_policy
from hydralign.models.policy import BranchReference, Policy
from hydralign.rollout import collect, evaluate_rows
from hydralign.testing import ScriptedSampler, tiny_model, tiny_policy, tiny_prompts
from hydralign.types import Experience, Prompt, Rollout, SamplingParams
from tests.conftest import shake, values_of


def scripted(policy: Policy, answers: list[list[int]], reward: Any) -> Experience:
    sampler = ScriptedSampler(tuple(map(tuple, answers)))
    prompts = tiny_prompts(policy.tokenizer, *(["this"] * len(answers)))
    return collect(policy, prompts, reward, SamplingParams(), sampler=sampler)


def test_score_lands_on_the_last_real_token_the_end_token_included(policy: Policy) -> None:
    eos = policy.stop_ids[0]
    experience = scripted(policy, [[20, 21, eos], [22, 23, 24, 25]], lambda completions: [5.0, 7.0])
    rewards_BR = estimate(experience, kl_coefficient=0.0).rewards_BR
    assert rewards_BR.tolist() == [[0, 0, 5, 0], [0, 0, 0, 7]]


def test_truncated_answers_bootstrap_nothing(policy: Policy) -> None:
    shake(policy)
    experience = scripted(policy, [[22, 23]], lambda completions: [3.0])
    advantages = estimate(experience, kl_coefficient=0.0, estimator=GAE(lam=1.0), whiten_advantages=False)
    assert advantages.returns_BR is not None
    assert advantages.returns_BR.tolist() == [[pytest.approx(3.0, abs=1e-5)] * 2]


def test_missing_end_penalty_counts_every_stop_token(policy: Any) -> None:
    policy.stop_ids = (policy.stop_ids[0], 40)
    answers = [[20, policy.stop_ids[0]], [20, 40], [20, 21]]
    experience = scripted(policy, answers, lambda completions: [1.0, 1.0, 1.0])
    rewards_BR = estimate(experience, kl_coefficient=0.0, missing_eos_penalty=2.0).rewards_BR
    assert rewards_BR[:, 1].tolist() == [1.0, 1.0, -1.0]


def test_kl_penalty_is_coefficient_times_k1_and_kl_is_its_sum_per_answer(policy: Policy) -> None:
    shake(policy)
    experience = scripted(policy, [[20, 21, 22], [23]], lambda completions: [0.0, 0.0])
    mask_BR = experience.rollout.rows.mask_BR
    gap_BR = (experience.old_logprobs_BR - experience.ref_logprobs_BR) * mask_BR
    assert gap_BR.abs().max() > 1e-3
    advantages = estimate(experience, kl_coefficient=0.5)
    torch.testing.assert_close(advantages.rewards_BR, -0.5 * gap_BR)
    assert advantages.stats["objective/kl"] == pytest.approx(gap_BR.sum(-1).mean().item(), abs=1e-6)
    k3_BR = torch.expm1(-gap_BR) + gap_BR
    torch.testing.assert_close(
        estimate(experience, kl_coefficient=1.0, kl_estimator="k3").rewards_BR, -k3_BR, atol=1e-6, rtol=1e-5
    )


def test_kl_is_zero_before_any_update(policy: Policy) -> None:
    experience = scripted(policy, [[20, 21, 22], [23]], lambda completions: [0.0, 0.0])
    assert estimate(experience).stats["objective/kl"] == 0.0


def test_dense_rewards_stand_on_their_own_tokens(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)

    def per_token(completions: list[str], completion_tokens: list[list[str]]) -> list[list[float]]:
        return [[float(t) for t in range(len(row))] for row in completion_tokens]

    experience = scripted(policy, [[20, 21, 22], [23, policy.stop_ids[0]]], per_token)
    advantages = estimate(experience, kl_coefficient=0.0)
    assert advantages.rewards_BR.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert advantages.stats["ppo/mean_scores"] == 2.0


def test_scores_are_scaled_then_clipped_then_penalised(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience = scripted(policy, [[20], [20, policy.stop_ids[0]]], lambda completions: [10.0, -1.0])
    advantages = estimate(experience, kl_coefficient=0, score_std=2.0, score_clip=3.0, missing_eos_penalty=1.0)
    assert advantages.rewards_BR.tolist() == [[2.0, 0.0], [0.0, -0.5]]


def test_rewards_see_columns_text_and_token_lists(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    prompts = [replace(p, columns={"topic": i}) for i, p in enumerate(tiny_prompts(tokenizer, "this", "that"))]
    that = [*tokenizer("that").input_ids, tokenizer.eos_token_id]
    collect(policy, prompts, reward, SamplingParams(), sampler=ScriptedSampler((tuple(that), (20,))))
    assert seen["prompts"] == ["this", "that"]
    assert seen["completions"][0] == "that"
    assert seen["topic"] == [0, 1]
    assert seen["finished"] == [True, False]
    assert "".join(seen["completion_tokens"][0]) == "that<eos>"


ANSWERS = [[20, 21], [22], [23, 24, 25], [26]]


@pytest.fixture
def without_critic(tokenizer: Any) -> Policy:
    return make_policy(tiny_model(tokenizer), tokenizer, critic=False)


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        # Two answers to each prompt, with scores 1, 4 and 5, 3.
        (LeaveOneOut(2), [-3.0, 3.0, 2.0, -2.0]),
        (GroupNormalised(2), [-(0.5**0.5), 0.5**0.5, 0.5**0.5, -(0.5**0.5)]),
    ],
)
def test_answers_to_one_prompt_are_compared_without_a_critic(
    estimator: AdvantageEstimator, wanted: list[float], without_critic: Policy
) -> None:
    experience = scripted(without_critic, ANSWERS, lambda completions: [1.0, 4.0, 5.0, 3.0])
    assert experience.values_BR is None
    found = estimate(experience, estimator=estimator, kl_coefficient=0.0, whiten_advantages=False)
    assert found.returns_BR is None
    for row, (advantage, answer) in enumerate(zip(wanted, ANSWERS, strict=True)):
        real = found.advantages_BR[row, : len(answer)].tolist()
        assert real == [pytest.approx(advantage, rel=1e-3)] * len(answer)
        assert not found.advantages_BR[row, len(answer) :].any()
    assert not [name for name in found.stats if "val" in name or "returns" in name]


def test_kl_penalty_is_part_of_what_answers_are_compared_by(without_critic: Policy) -> None:
    shake(without_critic)
    experience = scripted(without_critic, ANSWERS, lambda completions: [0.0] * 4)
    mask_BR = experience.rollout.rows.mask_BR
    kl_B = ((experience.old_logprobs_BR - experience.ref_logprobs_BR) * mask_BR).sum(1)
    found = estimate(experience, estimator=LeaveOneOut(2), kl_coefficient=0.5, whiten_advantages=False)
    assert found.advantages_BR[0, 0] == pytest.approx(float(0.5 * (kl_B[1] - kl_B[0])), abs=1e-5)


class _SecondOfTwo(Distributed):
    """A process whose neighbour holds the rows before its own, with returns 1, 2 and 3."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x + 3

    def gather(self, local_N: torch.Tensor, total: int) -> torch.Tensor:
        return torch.cat([torch.tensor([1.0, 2.0, 3.0]), local_N])


def test_answers_to_one_prompt_may_lie_on_two_processes(without_critic: Policy) -> None:
    experience = scripted(without_critic, ANSWERS[:3], lambda completions: [7.0, 8.0, 10.0])
    rewards_BR = estimate(experience, estimator=LeaveOneOut(3), kl_coefficient=0.0).rewards_BR
    advantages_BR, _ = LeaveOneOut(2)(rewards_BR, experience, _SecondOfTwo(rank=1, count=2))
    # Pairs over both: (1, 2), (3, 7), (8, 10).
    assert advantages_BR[:, 0].tolist() == [4.0, -2.0, 2.0]


def test_estimators_that_cannot_read_an_experience_say_why(without_critic: Policy) -> None:
    experience = scripted(without_critic, ANSWERS, lambda completions: [0.0] * 4)
    with pytest.raises(ConfigError, match="no critic"):
        estimate(experience)
    for samples in (1, 3):
        with pytest.raises(ConfigError, match=f"samples_per_prompt={samples} with 4 answers"):
            estimate(experience, estimator=LeaveOneOut(samples))


def test_reference_may_be_handed_in(tokenizer: Any) -> None:
    policy, other = (tiny_policy(tokenizer=tokenizer) for _ in range(2))
    shake(other)
    prompts = tiny_prompts(tokenizer)
    own, handed = (
        collect(policy, prompts, lambda completions: [0.0] * 3, SamplingParams(max_new_tokens=4), reference=reference)
        for reference in (None, BranchReference(other.branch))
    )
    assert torch.equal(own.old_logprobs_BR, handed.old_logprobs_BR)
    assert (own.old_logprobs_BR - own.ref_logprobs_BR).abs().max() < 1e-5
    assert (handed.old_logprobs_BR - handed.ref_logprobs_BR).abs().max() > 0.01
    assert torch.equal(handed.ref_logprobs_BR, evaluate_rows(other, handed.rollout.rows, 16).logprobs_BR)


def test_only_advantages_from_values_are_whitened_unless_asked(without_critic: Policy) -> None:
    experience = scripted(without_critic, ANSWERS, lambda completions: [1.0, 4.0, 5.0, 3.0])
    plain, whitened = (
        estimate(experience, estimator=LeaveOneOut(2), kl_coefficient=0.0, whiten_advantages=whiten).advantages_BR
        for whiten in (None, True)
    )
    assert plain[:, 0].tolist() == pytest.approx([-3.0, 3.0, 2.0, -2.0], abs=1e-5)
    assert not torch.allclose(plain, whitened)


def test_values_that_a_sampler_does_not_give_are_read(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    shake(policy)

    def without_values(policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        return replace(sample(policy, prompts, params), values_BR=None)

    params, prompts = SamplingParams(max_new_tokens=4), tiny_prompts(tokenizer)
    plain, read = (
        collect(policy, prompts, lambda completions: [0.0] * 3, params, sampler=sampler)
        for sampler in (sample, without_values)
    )
    torch.testing.assert_close(values_of(read), values_of(plain), atol=1e-5, rtol=1e-5)
