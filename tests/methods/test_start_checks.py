"""The checks before the first update fail for the right reason, and say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hydralign.errors import StartCheckError
from hydralign.methods.start_checks import _logit_size, check_start
from hydralign.models import make_policy
from hydralign.models.policy import BranchReference, Policy
from hydralign.rollout import collect
from hydralign.testing import LengthReward, tiny_model, tiny_policy, tiny_prompts
from hydralign.types import Experience, SamplingParams
from tests.conftest import FORMS, shake


def start(policy: Policy, **plan: Any) -> Experience:
    return collect(
        policy, tiny_prompts(policy.tokenizer), LengthReward(3), SamplingParams(max_new_tokens=6, seed=1, **plan)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fresh_policies_pass(family: str, form: str, precision: str, temperature: float, tokenizer: Any) -> None:
    policy = tiny_policy(family=family, form=FORMS[form], precision=precision, tokenizer=tokenizer)
    measured = check_start(policy, start(policy, temperature=temperature), fresh=True)
    assert 0 < measured["sampler/logprob_drift"] <= measured["sampler/logprob_drift_max"]


def test_policy_that_left_its_reference_is_refused_when_fresh_and_accepted_when_resumed(policy: Policy) -> None:
    shake(policy)
    experience = start(policy)
    with pytest.raises(StartCheckError, match="KL would not start at 0"):
        check_start(policy, experience, fresh=True)
    check_start(policy, experience, fresh=False)


def test_dropout_is_named_as_the_cause(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience = start(policy)
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
            module.train()
    with pytest.raises(StartCheckError, match="dropout"):
        check_start(policy, experience, fresh=True)


def test_sampler_that_drifts_is_refused(policy: Policy) -> None:
    experience = start(policy)
    rollout = replace(experience.rollout, old_logprobs_BR=experience.rollout.old_logprobs_BR - 2e-4)
    with pytest.raises(StartCheckError, match="off-policy"):
        check_start(policy, replace(experience, rollout=rollout), fresh=True)


def test_sampler_with_one_bad_token_is_refused(policy: Policy) -> None:
    experience = start(policy)
    old_BR = experience.rollout.old_logprobs_BR.clone()
    old_BR[0, 0] -= 1.5e-3
    with pytest.raises(StartCheckError, match=r"0\.0015 at most"):
        check_start(
            policy, replace(experience, rollout=replace(experience.rollout, old_logprobs_BR=old_BR)), fresh=True
        )


def moved(policy: Policy) -> None:
    """Give every trained weight a change of one part in 3 million, as rounding at another address would."""
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.mul_(1 + 3e-7)


def rounded_to_fp16(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.copy_(parameter.half().float())


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("form", ["full", "hydra"])
def test_rounding_passes_and_its_gap_is_told_while_weights_saved_in_fp16_are_refused(
    form: str, temperature: float, tokenizer: Any
) -> None:
    policy = tiny_policy(form=FORMS[form], tokenizer=tokenizer)
    experience = start(policy, temperature=temperature)
    same = check_start(policy, experience, fresh=True)
    assert same["start/ref_gap"] < 1e-5
    assert same["start/ref_gap_is_zero"] == float(same["start/ref_gap"] == 0)
    moved(policy)
    measured = check_start(policy, experience, fresh=True)
    assert 0 < measured["start/ref_gap"] < 1e-4
    assert measured["start/ref_gap_is_zero"] == 0.0
    assert "start/ref_gap" not in check_start(policy, experience, fresh=False)
    rounded_to_fp16(policy)
    with pytest.raises(StartCheckError, match="allowed as rounding in fp32"):
        check_start(policy, experience, fresh=True)


def test_large_logits_are_allowed_more_rounding(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience = start(policy)
    reference_BR = experience.ref_logprobs_BR + 2e-3 * experience.rollout.rows.mask_BR
    with pytest.raises(StartCheckError, match="KL would not start at 0"):
        check_start(policy, replace(experience, ref_logprobs_BR=reference_BR), fresh=True)
    shift = torch.nn.Parameter(torch.full((policy.branch.vocabulary,), 2000.0), requires_grad=False)
    policy.branch.head.linear.bias = shift
    assert _logit_size(policy, experience) > 1000


@pytest.mark.parametrize("share", [0.1, 0.001])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_little_dropout_is_no_rounding(share: float, precision: str, tokenizer: Any) -> None:
    policy = tiny_policy(precision=precision, tokenizer=tokenizer)
    prompts = tiny_prompts(tokenizer) * 8
    experience = collect(policy, prompts, LengthReward(3), SamplingParams(max_new_tokens=8, seed=1))
    for module in policy.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
            module.train()
    torch.manual_seed(0)
    with pytest.raises(StartCheckError, match="dropout"):
        check_start(policy, experience, fresh=True)


def test_adapter_that_is_not_the_references_is_refused(tokenizer: Any) -> None:
    policy = tiny_policy(form=FORMS["lora"], tokenizer=tokenizer)
    experience = start(policy)
    shake(policy, scale=1e-3)
    with pytest.raises(StartCheckError, match="adapters were changed"):
        check_start(policy, experience, fresh=True)


def test_tokens_that_cannot_be_said_do_not_switch_the_check_off(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    for branch in (policy.branch, policy.form.reference.branch):  # type: ignore[union-attr]
        branch.head.absent_ids = torch.tensor([280, 299])
    experience = start(policy)
    assert _logit_size(policy, experience) < 1000
    moved_BR = experience.ref_logprobs_BR + 0.1 * experience.rollout.rows.mask_BR
    with pytest.raises(StartCheckError, match="KL would not start at 0"):
        check_start(policy, replace(experience, ref_logprobs_BR=moved_BR), fresh=True)


def test_gap_to_a_reference_that_was_handed_in_is_measured_and_not_judged(tokenizer: Any) -> None:
    other = tiny_policy(tokenizer=tokenizer, seed=9)
    policy = make_policy(tiny_model(tokenizer), tokenizer, reference=BranchReference(other.whole))
    assert policy.form.reference is None  # no copy of the start is made
    assert check_start(policy, start(policy), fresh=True)["start/ref_gap"] > 0.1
