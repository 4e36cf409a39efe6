"""The update: which rows meet, what the loss divides by, when gradients are clipped, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, NonFiniteError
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import LossWeights, accumulate_policy_gradients, minibatch_rows, update
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.rollout import collect
from hydralign.testing import tiny_policy, tiny_prompts
from hydralign.training.optimizer import apply_gradients, make_optimizer
from hydralign.types import Advantages, Experience, SamplingParams, TokenBatch
from tests.conftest import shake

PLAN = SamplingParams(max_new_tokens=7, seed=2)


def count_a(completions: list[str]) -> list[float]:
    return [float(text.count("a") + len(text) % 3) for text in completions]


def learnt(policy: Any, rows: int = 8) -> tuple[Experience, Advantages]:
    """An experience of answers of unequal lengths, with its advantages."""
    policy.stop_ids = tuple(range(0, 300, 8))
    prompts = tiny_prompts(policy.tokenizer, *("that and this thing of words"[:n] for n in range(3, 3 + rows)))
    experience = collect(policy, prompts, count_a, PLAN)
    assert len(set(experience.rollout.rows.response_lengths_B.tolist())) > 2
    return experience, estimate(experience)


def step_gradients(
    policy: Policy,
    experience: Experience,
    advantages: Advantages,
    *,
    micro_batch_size: int,
    order: list[int],
    average: Any,
) -> dict[str, torch.Tensor]:
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.1)
    weights = LossWeights(average=average, entropy_coefficient=0.01)
    accumulate_policy_gradients(
        policy, experience, advantages, torch.tensor(order), micro_batch_size, weights, optimizer, SINGLE_PROCESS
    )
    return {name: p.grad.clone() for name, p in policy.trained().items() if p.grad is not None}


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize(("micro_batch_size", "order"), [(1, [0, 1, 2, 3]), (3, [3, 1, 0, 2]), (2, [2, 3, 0, 1])])
def test_micro_batches_add_up_to_the_whole_step(
    policy: Policy, micro_batch_size: int, order: list[int], average: str
) -> None:
    experience, advantages = learnt(policy, rows=4)
    shake(policy)
    whole = step_gradients(policy, experience, advantages, micro_batch_size=4, order=[0, 1, 2, 3], average=average)
    parts = step_gradients(
        policy, experience, advantages, micro_batch_size=micro_batch_size, order=order, average=average
    )
    scale = max(g.abs().max().item() for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name] / scale, gradient / scale, atol=1e-5, rtol=0)


def test_micro_rows_change_no_weight_after_an_update_with_sgd(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    start = {name: p.detach().clone() for name, p in policy.trained().items()}
    ends = []
    for micro_batch_size in (1, 16):
        with torch.no_grad():
            for name, parameter in policy.trained().items():
                parameter.copy_(start[name])
        optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
        stats = update(
            policy, optimizer, experience, advantages, epochs=2, minibatches=2, micro_batch_size=micro_batch_size
        )
        ends.append(({name: p.detach().clone() for name, p in policy.trained().items()}, stats))
    for name, weight in ends[0][0].items():
        torch.testing.assert_close(weight, ends[1][0][name], atol=1e-5, rtol=0)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)
    assert any(not torch.equal(start[name], weight) for name, weight in ends[0][0].items())


def test_first_step_has_ratio_one_and_no_divergence(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-3)
    stats = update(policy, optimizer, experience, advantages, epochs=1, minibatches=1)
    assert stats["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert stats["ppo/policy/approxkl"] == pytest.approx(0.0, abs=1e-9)
    assert stats["ppo/policy/clipfrac"] == 0
    assert stats["sampler/logprob_drift"] < 1e-5


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_loss_divides_by_all_tokens_or_all_answers_of_the_step(policy: Policy, average: Any) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), type="sgd")
    step = accumulate_policy_gradients(
        policy, experience, advantages, torch.arange(8), 3, LossWeights(average=average), optimizer, SINGLE_PROCESS
    )
    answers = [a[m] for a, m in zip(advantages.advantages_BR, experience.rollout.rows.mask_BR, strict=True)]
    by_hand = torch.cat(answers).mean() if average == "token" else torch.stack([a.mean() for a in answers]).mean()
    assert step.losses["policy_loss"].item() == pytest.approx(-by_hand.item(), abs=1e-5)  # every ratio is 1


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 2), (2, 8)])
def test_optimizer_steps_are_epochs_times_minibatches(policy: Policy, epochs: int, minibatches: int) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-4)
    stats = update(policy, optimizer, experience, advantages, epochs=epochs, minibatches=minibatches)
    assert stats["ppo/optimizer_steps"] == epochs * minibatches
    counts = {int(state["step"]) for state in optimizer.state.values()}
    assert counts == {epochs * minibatches}


def test_clipping_binds_on_every_optimizer_step(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=1.0)
    limit, moves, norms = 1e-3, [], []
    for index_B in minibatch_rows(8, 4, seed=0, iteration=0, epoch=0):
        before = torch.cat([p.detach().clone().reshape(-1) for p in policy.trained().values()])
        accumulate_policy_gradients(
            policy, experience, advantages, index_B, 2, LossWeights(), optimizer, SINGLE_PROCESS
        )
        norms.append(float(apply_gradients(optimizer, policy.trained(), limit)))
        after = torch.cat([p.detach().reshape(-1) for p in policy.trained().values()])
        moves.append(float((after - before).double().norm()))
    assert min(norms) > 10 * limit
    assert moves == pytest.approx([limit] * 4, rel=0.02)


def test_pre_clip_norm_is_reported(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=1e-9)
    stats = update(policy, optimizer, experience, advantages, epochs=1, minibatches=1, max_grad_norm=1e-6)
    optimizer = make_optimizer(policy.trained(), type="sgd")
    accumulate_policy_gradients(
        policy, experience, advantages, torch.arange(8), 8, LossWeights(), optimizer, SINGLE_PROCESS
    )
    norm = torch.cat([p.grad.reshape(-1) for p in policy.trained().values() if p.grad is not None]).norm().item()
    assert stats["ppo/policy/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_target_kl_stops_the_iteration_early(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=30.0)
    stats = update(
        policy, optimizer, experience, advantages, epochs=4, minibatches=4, target_kl=1e-6, max_grad_norm=10.0
    )
    assert stats["ppo/early_stopped"] == 1
    assert stats["ppo/optimizer_steps"] == 1  # the second minibatch sees what the first step did, and vetoes its own


def test_minibatches_partition_the_rows_of_every_epoch() -> None:
    for epoch in range(3):
        parts = list(minibatch_rows(12, 3, seed=1, iteration=2, epoch=epoch))
        assert [len(p) for p in parts] == [4, 4, 4]
        assert sorted(torch.cat(parts).tolist()) == list(range(12))
    first, second = (list(minibatch_rows(64, 4, seed=1, iteration=2, epoch=epoch)) for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])


def test_the_same_rows_meet_whatever_the_number_of_processes() -> None:
    whole = [set(p.tolist()) for p in minibatch_rows(24, 3, seed=1, iteration=2, epoch=0)]
    halves = [
        [set((p + 12 * rank).tolist()) for p in minibatch_rows(
            12, 3, seed=1, iteration=2, epoch=0, processes=Distributed(rank=rank, count=2)
        )]
        for rank in (0, 1)
    ]  # fmt: skip
    assert [a | b for a, b in zip(*halves, strict=True)] == whole


def poison(advantages: Advantages, row: int) -> Advantages:
    advantages_BR = advantages.advantages_BR.clone()
    advantages_BR[row, 0] = float("nan")
    return replace(advantages, advantages_BR=advantages_BR)


def test_poisoned_loss_takes_no_step_and_names_the_loss(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    start = {name: p.detach().clone() for name, p in policy.trained().items()}
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-2)
    with pytest.raises(NonFiniteError, match="NaN or infinite") as caught:
        update(policy, optimizer, experience, poison(advantages, 3), epochs=1, minibatches=1, micro_batch_size=2)
    assert caught.value.where == "update/policy_loss"
    assert all(torch.equal(start[name], p) for name, p in policy.trained().items())
    assert all(p.grad is None for p in policy.trained().values())


def test_poisoned_gradient_takes_no_step_and_names_the_parameter(policy: Policy) -> None:
    experience, advantages = learnt(policy)
    trained = policy.trained()
    name = list(trained)[1]
    trained[name].register_hook(lambda gradient: gradient * float("inf"))
    start = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = make_optimizer(trained, learning_rate=1e-2)
    shake(policy, scale=0.0)
    with pytest.raises(NonFiniteError) as caught:
        update(policy, optimizer, experience, advantages, epochs=1, minibatches=1)
    assert caught.value.where == f"update/gradient/{name}"
    assert all(torch.equal(start[n], p) for n, p in trained.items())


def test_whitening_is_masked(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience, advantages = learnt(policy)
    mask_BR = experience.rollout.rows.mask_BR
    kept = advantages.advantages_BR[mask_BR].double()
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert (advantages.advantages_BR[~mask_BR] == 0).all()


def test_metrics_ignore_padding(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience, _ = learnt(policy)
    lengths_B = experience.rollout.rows.response_lengths_B.double()
    stats = estimate(experience, whiten_advantages=False).stats
    assert stats["tokens/responses_len_mean"] == pytest.approx(lengths_B.mean().item())
    mask_BR = experience.rollout.rows.mask_BR
    assert stats["objective/logprobs"] == pytest.approx(experience.old_logprobs_BR[mask_BR].mean().item(), abs=1e-6)
    optimizer = make_optimizer(policy.trained(), learning_rate=1e-9)
    stats = update(policy, optimizer, experience, estimate(experience), epochs=1, minibatches=4, micro_batch_size=1)
    with torch.no_grad():
        entropy_BR = policy.evaluate(experience.rollout.rows).entropy_BR
    assert stats["objective/entropy"] == pytest.approx(entropy_BR[mask_BR].mean().item(), abs=1e-5)


def test_poison_after_a_good_step_keeps_that_step_and_takes_no_further(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience, advantages = learnt(policy)
    order = [part.tolist() for part in minibatch_rows(8, 4, seed=0, iteration=0, epoch=0)]
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.1)
    start = {name: p.detach().clone() for name, p in policy.trained().items()}
    with pytest.raises(NonFiniteError):
        update(policy, optimizer, experience, poison(advantages, order[1][0]), epochs=1, minibatches=4)
    after_one = {name: p.detach().clone() for name, p in policy.trained().items()}
    with torch.no_grad():
        for name, parameter in policy.trained().items():
            parameter.copy_(start[name])
    accumulate_policy_gradients(
        policy, experience, advantages, torch.tensor(order[0]), 16, LossWeights(), optimizer, SINGLE_PROCESS
    )
    apply_gradients(optimizer, policy.trained(), 1.0)
    for name, parameter in policy.trained().items():
        torch.testing.assert_close(parameter.detach(), after_one[name])


def test_rows_that_do_not_divide_are_refused(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience, advantages = learnt(policy)
    optimizer = make_optimizer(policy.trained())
    with pytest.raises(ConfigError, match="8 rows are not a multiple of minibatches=3"):
        update(policy, optimizer, experience, advantages, minibatches=3)


def run_out(policy: Any, *, forward: int | None = None, backward: int | None = None) -> list[int]:
    """Memory runs out once, in the given forward or backward pass; returns the rows of every forward pass."""
    evaluate, rows_seen = policy.evaluate, list[int]()

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    def evaluate_short(rows: TokenBatch, **named: Any) -> Any:
        rows_seen.append(len(rows))
        told = evaluate(rows, **named)
        if len(rows_seen) == forward:
            fail(told.values_BR)
        if len(rows_seen) == backward:
            told.values_BR.register_hook(fail)
        return told

    policy.evaluate = evaluate_short
    return rows_seen


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_gradients_after_a_fallback_are_those_without(policy: Policy, place: str) -> None:
    experience, advantages = learnt(policy)
    shake(policy)
    shared: dict[str, Any] = {"micro_batch_size": 4, "order": list(range(8)), "average": "token"}
    plain = step_gradients(policy, experience, advantages, **shared)
    rows_seen = run_out(policy, **{place: 2})
    short = step_gradients(policy, experience, advantages, **shared)
    assert rows_seen == [4, 4, 2, 2, 2, 2]
    assert short.keys() == plain.keys()
    scale = max(g.abs().max().item() for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(short[name] / scale, gradient / scale, atol=1e-6, rtol=0)


def test_fallback_changes_neither_steps_nor_metrics_and_stays_for_the_next_update(tokenizer: Any) -> None:
    ends = []
    for forward in (None, 2):
        policy = tiny_policy(tokenizer=tokenizer)
        experience, advantages = learnt(policy)
        rows_seen, micro = run_out(policy, forward=forward), MicroBatcher(4)
        optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
        plan: dict[str, Any] = {"epochs": 2, "minibatches": 2, "micro_batch_size": micro}
        stats = [update(policy, optimizer, experience, advantages, iteration=i, **plan) for i in (0, 1)]
        ends.append((stats, torch.cat([p.detach().reshape(-1) for p in policy.trained().values()]), rows_seen, micro))
    assert ends[1][2] == [4, 4, 2, 2] + [2, 2] * 6  # the second of eight steps is done again, the others by twos
    assert ends[1][3].rows == 2
    torch.testing.assert_close(ends[1][1], ends[0][1], atol=1e-6, rtol=0)
    for plain, short in zip(ends[0][0], ends[1][0], strict=True):
        assert short["ppo/optimizer_steps"] == 4
        assert short == pytest.approx(plain, abs=1e-6)


def test_poison_is_not_taken_for_lack_of_memory(tokenizer: Any) -> None:
    policy = tiny_policy(tokenizer=tokenizer)
    experience, advantages = learnt(policy)
    rows_seen, micro = run_out(policy), MicroBatcher(4)
    with pytest.raises(NonFiniteError):
        update(
            policy,
            make_optimizer(policy.trained()),
            experience,
            poison(advantages, 3),
            minibatches=1,
            micro_batch_size=micro,
        )
    assert micro.rows == 4
    assert rows_seen in ([4], [4, 4])  # nothing is tried again
