"""Training in the hydra form: what moves, what never does, and that every token crosses the trunk once.

Models of tests/models/test_slicing.py: five layers, mixed layer types, rows longer than the sliding window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.config.model import HydraForm, LoraForm
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import LossWeights, update
from hydralign.models.backbones.slicing import layers_of
from hydralign.rollout import collect, evaluate_rows, reference_rows
from hydralign.testing import ScriptedSampler
from hydralign.training.optimizer import make_optimizer
from hydralign.types import Advantages, Experience, TrunkUse
from tests.conftest import shake, values_of
from tests.models.test_hydra import FEW, FORMS, PLAN, new_policy, some_prompts
from tests.models.test_slicing import FAMILIES, LAYERS

few_families = pytest.mark.parametrize("family", FEW)
CASES = [(family, list(FORMS)[i % 4]) for i, family in enumerate(FAMILIES)] + [(family, "lora2") for family in FEW]


def random_scores(completions: Sequence[str]) -> list[float]:
    return torch.randn(len(completions), generator=torch.Generator().manual_seed(8)).tolist()


def learnt(policy: Any, prompts: int = 6, **plan: Any) -> tuple[Experience, Advantages]:
    experience = collect(policy, some_prompts(prompts), random_scores, replace(PLAN, **plan))
    return experience, estimate(experience)


def tensors(policy: Any) -> dict[str, Tensor]:
    """Everything there is: the model's own, the reference's, the value branch's, the value head's."""
    parts = {
        "model": policy.model,
        "reference": policy.reference.branch.backbone.body,
        "value_head": policy.critic.head,
    }
    if policy.critic.backbone is not None:
        parts["value_branch"] = policy.critic.backbone.body
    return {f"{part}.{name}": t for part, m in parts.items() for name, t in m.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize(("family", "form"), CASES)
def test_twenty_steps_move_what_is_trained_and_nothing_else(family: str, form: str, tokenizer: Any) -> None:
    policy = new_policy(family, form, tokenizer)
    experience, advantages = learnt(policy, max_new_tokens=8)
    rows, before = experience.rollout.rows, {name: t.detach().clone() for name, t in tensors(policy).items()}
    start_BR = reference_rows(policy, rows, 6)
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-2)
    stats = update(policy, optimizer, experience, advantages, epochs=10, minibatches=2)
    assert stats["ppo/optimizer_steps"] == 20
    trained = {id(p) for p in policy.trained().values()}
    moved = {name for name, tensor in tensors(policy).items() if not torch.equal(tensor, before[name])}
    assert {name for name, tensor in tensors(policy).items() if id(tensor) in trained} >= moved
    assert not any(name.startswith("reference.") for name in moved)
    assert {int(part) for name in moved for part in name.split(".") if part.isdigit()} == touched(form)
    assert torch.equal(reference_rows(policy, rows, 6), start_BR)
    with torch.no_grad():
        assert (policy.evaluate(rows).logprobs_BR - start_BR).abs().max() > 0.05
        fresh = rows.with_trunk(None)  # the trunk is where it was: its states are the harvested ones
        torch.testing.assert_close(policy.reference_logprobs(fresh), policy.reference_logprobs(rows), atol=1e-5, rtol=0)


def touched(form: str) -> set[int]:
    """The numbers of the layers that move: in the model, and counted from the cut in a value branch."""
    chosen = FORMS[form]
    assert isinstance(chosen, HydraForm | LoraForm)
    assert chosen.unfrozen_layers is not None
    own = range(chosen.unfrozen_layers) if isinstance(chosen, HydraForm) and chosen.value == "branch" else ()
    return {*range(LAYERS - chosen.unfrozen_layers, LAYERS), *own}


@contextmanager
def crossing(policy: Any) -> Iterator[list[int]]:
    """Counts the positions that the trunk's first layer gives out, by a hook of the test's own."""
    counted = [0]

    def add(_: Any, __: Any, out: Any) -> None:
        counted[0] += (out[0] if isinstance(out, tuple) else out)[..., 0].numel()

    handle = layers_of(policy.model.base_model)[0].register_forward_hook(add)
    try:
        yield counted
    finally:
        handle.remove()


@pytest.mark.parametrize("decode_batch_size", [2, 10])
@pytest.mark.parametrize("form", ["k1", "k2-values", "lora2"])
@few_families
def test_every_token_crosses_the_trunk_once_and_the_count_is_true(
    family: str, form: str, decode_batch_size: int, tokenizer: Any
) -> None:
    policy = new_policy(family, form, tokenizer)
    with crossing(policy) as counted:
        experience, advantages = learnt(policy, prompts=10, decode_batch_size=decode_batch_size)
        collecting = counted[0]
        optimizer = make_optimizer(policy.trained(), learning_rate=1e-3)
        stats = update(policy, optimizer, experience, advantages, epochs=2, minibatches=2, micro_batch_size=2)
    use, rows = policy.trunk.use, experience.rollout.rows
    left_B = rows.prompt_lengths_B.sort().values.view(-1, decode_batch_size)
    left_pad = int((left_B.amax(1, keepdim=True) - left_B).sum())
    assert counted[0] == collecting == use.real + use.pad
    assert experience.trunk_use == use
    assert use.real == int(rows.lengths_B.sum())
    assert use.pad == left_pad if decode_batch_size == 2 else use.pad >= left_pad > 0
    assert experience.rollout.finished_B.sum() > 3
    assert stats["trunk_passes_per_token"] == 1.0
    assert stats["trunk_pad_share"] == use.pad / (use.real + use.pad)


@pytest.mark.parametrize("form", ["k1", "k2-values"])
def test_collecting_in_fp32_reads_values_of_a_branch_alone(
    form: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = new_policy("llama", form, tokenizer)
    shake(policy)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "evaluate", None)
        experience, _ = learnt(policy)
    expected = evaluate_rows(policy, experience.rollout.rows, 16)
    torch.testing.assert_close(values_of(experience), values_of(expected), atol=1e-5, rtol=1e-5)
    assert values_of(expected).abs().max() > 0.01


def test_padding_is_counted_for_short_prompts_and_ended_rows(tokenizer: Any) -> None:
    policy = new_policy("llama", "k1", tokenizer)
    rows = collect(policy, some_prompts()[:2], random_scores, PLAN).rollout.rows
    prompts, answers = rows.prompt_lengths_B, rows.response_lengths_B
    assert answers[0] != answers[1]
    # Left of the shorter prompt. Of two rows one leaves at once when it ends: it reads its last token and no other.
    assert policy.trunk.use == TrunkUse(real=int((prompts + answers).sum()), pad=int(prompts.max() - prompts.min()))


def test_of_ten_rows_the_first_that_ends_waits_for_the_second_and_its_waiting_is_padding(tokenizer: Any) -> None:
    policy = new_policy("gpt2", "k1", tokenizer)
    rows = learnt(policy, prompts=10)[0].rollout.rows
    prompts, (first, second) = rows.prompt_lengths_B, rows.response_lengths_B.sort().values[:2].tolist()
    assert second > first
    waiting = policy.trunk.use.pad - int((prompts.max() - prompts).sum())
    assert waiting == second - first


def test_a_second_iteration_counts_its_own_tokens_alone(tokenizer: Any) -> None:
    policy = new_policy("gpt2", "k2-values", tokenizer)
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-3)
    real = 0
    for iteration in range(3):
        experience, advantages = learnt(policy, iteration=iteration, max_new_tokens=6)
        stats = update(policy, optimizer, experience, advantages, epochs=1, minibatches=1)
        real += int(experience.rollout.rows.lengths_B.sum())
        assert stats["trunk_passes_per_token"] == 1.0
    assert policy.trunk.use.real == real


def test_a_sampler_that_harvests_nothing_costs_one_pass_more_than_its_own(tokenizer: Any) -> None:
    policy = new_policy("gpt2", "k1", tokenizer)
    answers = ((7, 8, 9), (10, 5), (11, 12, 13, 14, 15, 16))
    with crossing(policy) as counted:
        experience = collect(policy, some_prompts(), random_scores, PLAN, sampler=ScriptedSampler(answers))
        optimizer = make_optimizer(policy.trained(), learning_rate=1e-3)
        stats = update(policy, optimizer, experience, estimate(experience), minibatches=2)
    assert experience.rollout.rows.trunk is not None
    assert counted[0] == policy.trunk.use.real + policy.trunk.use.pad
    # The scripted sampler evaluates its rows, from ids, and drops the states: one pass. Collecting them is the other.
    assert stats["trunk_passes_per_token"] == 2.0


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("form", ["k1", "k2-values", "k4", "lora2"])
def test_micro_rows_change_no_weight_after_updates_with_sgd(form: str, average: Any, tokenizer: Any) -> None:
    policy = new_policy("gemma2", form, tokenizer)
    experience, advantages = learnt(policy, max_new_tokens=20)
    assert len(set(experience.rollout.rows.response_lengths_B.tolist())) > 3
    start = {name: p.detach().clone() for name, p in policy.trained().items()}
    ends: list[dict[str, Tensor]] = []
    for micro_batch_size in (1, 6, 4):
        with torch.no_grad():
            for name, parameter in policy.trained().items():
                parameter.copy_(start[name])
        optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
        loss = LossWeights(average=average, entropy_coefficient=0.01)
        update(
            policy,
            optimizer,
            experience,
            advantages,
            epochs=2,
            minibatches=1,
            micro_batch_size=micro_batch_size,
            loss=loss,
        )
        ends.append({name: p.detach().clone() for name, p in policy.trained().items()})
    for name, weight in ends[0].items():
        for other in ends[1:]:
            torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=1e-5)
    assert max((ends[0][name] - start[name]).abs().max().item() for name in start) > 1e-3
