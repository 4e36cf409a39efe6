"""Passes through the trunk are counted of what is kept: an attempt that ran out of memory is not among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from hydralign.generation.sampler import Sampler, sample
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import update
from hydralign.models.policy import Policy
from hydralign.rollout import collect
from hydralign.testing import LengthReward, tiny_policy
from hydralign.training.optimizer import make_optimizer
from hydralign.types import Prompt, Rollout, SamplingParams, TokenBatch
from tests.conftest import FORMS
from tests.test_micro_batches import PLAN, many, out_of_memory, stops_early


@pytest.mark.parametrize("form", ["hydra", "hydra-lora"])
@pytest.mark.parametrize("harvests", [True, False])
def test_attempt_that_failed_is_not_counted_as_a_pass_through_the_trunk(
    form: str, harvests: bool, tokenizer: Any
) -> None:
    policy: Any = stops_early(tiny_policy(form=FORMS[form], tokenizer=tokenizer))
    start, states, failed = policy.start, policy.trunk.states, list[str]()

    def out_after_the_prompts(*prompts: Any, **named: Any) -> Any:
        decoding = start(*prompts, **named)
        if len(prompts[0]) > 3:
            failed.append("sampling")
            raise out_of_memory()
        return decoding

    def out_after_the_pass(rows: TokenBatch) -> Tensor:
        states_BTD = states(rows)
        if len(rows) > 3:
            failed.append("reading")
            raise out_of_memory()
        return states_BTD

    def without_states(policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        rollout = sample(policy, prompts, params)
        return replace(rollout, rows=replace(rollout.rows, trunk=None))

    policy.start, policy.trunk.states = out_after_the_prompts, out_after_the_pass
    sampler: Sampler = sample if harvests else without_states
    experience = collect(policy, many(policy), LengthReward(3), PLAN, micro_batch_size=8, sampler=sampler)
    assert failed == ["sampling"] * 2 + ["reading"] * 2 * (not harvests)
    assert experience.trunk_use is not None
    real = int(experience.rollout.rows.lengths_B.sum())
    assert experience.trunk_use.real == real * (1 if harvests else 2)
    calm: Any = stops_early(tiny_policy(form=FORMS[form], tokenizer=tokenizer))
    plain = collect(
        calm, many(calm), LengthReward(3), replace(PLAN, decode_batch_size=2), micro_batch_size=2, sampler=sampler
    )
    assert experience.trunk_use == plain.trunk_use
    assert policy.trunk.use == calm.trunk.use


def test_update_that_ran_out_counts_the_trunk_once(tokenizer: Any) -> None:
    uses = []
    for most in (8, 3):
        policy: Any = stops_early(tiny_policy(form=FORMS["hydra"], tokenizer=tokenizer))
        experience = collect(policy, many(policy), LengthReward(3), PLAN, micro_batch_size=2)
        bare = replace(experience.rollout, rows=replace(experience.rollout.rows, trunk=None))
        evaluate = policy.evaluate

        def cramped(rows: TokenBatch, evaluate: Any = evaluate, most: int = most, **named: Any) -> Any:
            told = evaluate(rows, **named)  # brings no states, so the trunk is run
            if len(rows) > most:
                raise out_of_memory()
            return told

        policy.evaluate = cramped
        optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
        settings: dict[str, Any] = {"epochs": 1, "minibatches": 1, "micro_batch_size": 8}
        stats = update(policy, optimizer, replace(experience, rollout=bare), estimate(experience), **settings)
        uses.append(stats["trunk_passes_per_token"])
    assert uses[0] == uses[1] == 2.0
