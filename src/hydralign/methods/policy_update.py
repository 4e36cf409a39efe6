"""PPO's third stage: epochs × minibatches × micro-batches of the clipped objective, one optimizer step each minibatch.

Losses are local sums over the global count of the optimizer step, so micro-batches and processes add up to the
same loss and gradient, whatever their number. So a step that runs out of memory is done again in smaller micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydralign.algorithms.kl import k1
from hydralign.algorithms.masked import Average, aggregate, masked_sum
from hydralign.algorithms.policy_losses import clipped_policy_loss
from hydralign.algorithms.value_losses import clipped_value_loss
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError
from hydralign.generation.keyed import SHUFFLE, keyed_uniforms
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.rollout import keep_trunk_count
from hydralign.training.metrics import Sums
from hydralign.training.optimizer import accumulate, apply_gradients
from hydralign.types import Advantages, Experience, TokenBatch, TrunkUse


@dataclass(frozen=True)
class LossWeights:
    """The clipped objective's settings (Schulman et al. 2017) as `update` takes them."""

    clip: float = 0.2
    value_clip: float | None = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    average: Average = "token"


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    advantages: Advantages,
    *,
    epochs: int = 4,
    minibatches: int = 4,
    micro_batch_size: int | MicroBatcher = 16,
    loss: LossWeights | None = None,
    target_kl: float | None = None,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    iteration: int = 0,
    processes: Distributed = SINGLE_PROCESS,
) -> dict[str, float]:
    """Train the policy on one experience; returns global means of the update's metrics.

    Takes `epochs · minibatches` optimizer steps, fewer when after one of them the k3 estimate of KL(old, new) per
    token exceeds `target_kl` on the next minibatch, whose step is then not taken. `micro_batch_size` is halved whenever
    memory runs out, and a `MicroBatcher` remembers it for the next call. Raises NonFiniteError, with the weights as the
    last good step left them, when a loss or a gradient is NaN or infinite; MemoryLimitError when one row at a time is
    too many; ConfigError when the rows do not divide among the minibatches.
    """
    if epochs < 1 or minibatches < 1 or not isinstance(loss, LossWeights | None):
        raise ConfigError(
            f"epochs={epochs}, minibatches={minibatches}, loss={loss!r:.60}: nothing could be learned so. Give whole "
            "numbers above 0, and LossWeights or None."
        )
    if len(experience) % minibatches:
        raise ConfigError(
            f"{len(experience)} rows are not a multiple of minibatches={minibatches}: some would never be trained on. "
            "Collect another number of rows, or change minibatches."
        )
    weights, fits = loss or LossWeights(), MicroBatcher.of(micro_batch_size)
    trained = policy.trained()
    sums, steps, stopped = Sums(), 0, False
    before = policy.trunk and policy.trunk.use
    shuffle: dict[str, Any] = {"seed": seed, "iteration": iteration, "processes": processes}
    drawn = (minibatch_rows(len(experience), minibatches, epoch=epoch, **shuffle) for epoch in range(epochs))
    for index_B in itertools.chain.from_iterable(drawn):
        step = accumulate_policy_gradients(policy, experience, advantages, index_B, fits, weights, optimizer, processes)
        if steps == 0:
            sums.add("drift", step.drift, step.tokens)
        for name, total in step.losses.items():
            sums.add(name, total, 1 / processes.count)
        sums.add_all(step.stats, step.tokens)
        stopped = target_kl is not None and float(processes.sum(step.stats["k3"])) / step.global_tokens > target_kl
        if stopped:
            break
        norm = apply_gradients(optimizer, trained, max_grad_norm, processes)
        sums.add("grad_norm", norm / processes.count, 1 / processes.count)
        steps += 1
    if policy.trunk and before and experience.trunk_use:
        rows, collecting = experience.rollout.rows, experience.trunk_use
        _add_trunk_use(sums, rows, collecting, policy.trunk.use.since(before))
    return _named(sums.means(processes), steps, stopped, truncated=experience.truncated)


def _add_trunk_use(sums: Sums, rows: TokenBatch, collecting: TrunkUse, updating: TrunkUse) -> None:
    """What one iteration took of the trunk: passes per real token, and the share of padding."""
    real, pad = collecting.real + updating.real, collecting.pad + updating.pad
    sums.add("trunk_passes_per_token", real, int(rows.lengths_B.sum()))
    sums.add("trunk_pad_share", pad, real + pad)


def minibatch_rows(
    rows: int, minibatches: int, *, seed: int, iteration: int, epoch: int, processes: Distributed = SINGLE_PROCESS
) -> Iterator[Tensor]:
    """This process's rows of each minibatch of one epoch, as indices into its own rows.

    Every minibatch takes one row at random out of each block of `minibatches` neighbours. So every process holds an
    equal share of every minibatch, and which rows meet does not depend on the number of processes.
    """
    blocks = rows // minibatches
    first = processes.rank * blocks
    order = keyed_uniforms(
        seed=seed,
        iteration=iteration,
        rows=np.arange(first, first + blocks) * (1 << 20) + epoch,
        positions=minibatches,
        stream=SHUFFLE,
    ).argsort(axis=1)
    index = torch.from_numpy(order + np.arange(blocks)[:, None] * minibatches)
    yield from index.t().contiguous()


LOSSES = ("policy_loss", "value_loss", "total_loss")


@dataclass(frozen=True)
class _Step:
    """What one minibatch's forward passes gave; its gradients lie in the parameters."""

    stats: dict[str, Tensor]
    """Local sums over tokens."""
    losses: dict[str, Tensor]
    """Local parts of the step's losses, which add up over processes."""
    drift: Tensor
    """Local Σ|log-probability now − sampler's|."""
    tokens: Tensor
    global_tokens: float


def accumulate_policy_gradients(
    policy: Policy,
    experience: Experience,
    advantages: Advantages,
    index_B: Tensor,
    micro_batch_size: int | MicroBatcher,
    weights: LossWeights,
    optimizer: torch.optim.Optimizer,
    processes: Distributed,
) -> _Step:
    """Gradients of one minibatch's loss, in micro-batches of rows of like length. Raises as `accumulate` does."""
    rows = experience.rollout.rows
    lengths_B = rows.response_lengths_B[index_B]
    local = torch.stack([lengths_B.sum(), (lengths_B > 0).sum()]).double()
    tokens, answers = processes.sum(local.to(processes.device)).tolist()
    count = tokens if weights.average == "token" else answers
    by_length_B = index_B[rows.lengths_B[index_B].argsort(stable=True)]
    sums = accumulate(
        lambda few: micro_loss(policy, experience, advantages, torch.tensor(few), weights, count),
        by_length_B.tolist(),
        optimizer,
        micro_batch_size,
        processes,
        where="update/",
        hint="clip scores (ppo.shaping.clip)",
        undo=keep_trunk_count(policy),
    )
    losses = {name: sums.pop(name) for name in LOSSES if name in sums}
    return _Step(sums, losses, sums.pop("drift"), local[0], tokens)


def micro_loss(
    policy: Policy,
    experience: Experience,
    advantages: Advantages,
    index_B: Tensor,
    weights: LossWeights,
    count: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped objective on a few rows, divided by `count`: the tokens (or answers) of the whole step.

    With it, detached: its parts of the step's losses, sums over tokens, and Σ|log-probability now − sampler's|.
    """
    rows = experience.rollout.rows.select(index_B)
    mask_BR, width = rows.mask_BR, rows.width
    old_logprobs_BR, advantages_BR = (
        x_BR[index_B, :width] for x_BR in (experience.old_logprobs_BR, advantages.advantages_BR)
    )
    shared: dict[str, Any] = {"average": weights.average, "count": count}
    output = policy.evaluate(rows, entropy_gradient=weights.entropy_coefficient > 0)
    loss, stats = clipped_policy_loss(
        output.logprobs_BR, old_logprobs_BR, advantages_BR, mask_BR, clip=weights.clip, **shared
    )
    losses = {"policy_loss": loss.detach()}
    if output.values_BR is not None and experience.values_BR is not None and advantages.returns_BR is not None:
        old_values_BR, returns_BR = (x_BR[index_B, :width] for x_BR in (experience.values_BR, advantages.returns_BR))
        value_loss, value_stats = clipped_value_loss(
            output.values_BR, old_values_BR, returns_BR, mask_BR, clip=weights.value_clip, **shared
        )
        loss = loss + weights.value_coefficient * value_loss
        stats, losses = stats | value_stats, losses | {"value_loss": value_loss.detach()}
    if weights.entropy_coefficient:
        loss = loss - weights.entropy_coefficient * aggregate(output.entropy_BR, mask_BR, **shared)
    sampler_BR = experience.rollout.old_logprobs_BR[index_B, :width]
    drift = k1(output.logprobs_BR.detach(), sampler_BR, mask_BR).abs().sum()
    entropy = masked_sum(output.entropy_BR.detach(), mask_BR)
    return loss, losses | {"total_loss": loss.detach(), **stats, "entropy": entropy, "drift": drift}


def _named(means: dict[str, float], steps: int, stopped: bool, *, truncated: bool) -> dict[str, float]:
    """The update's metrics under the names that classic TRL gave them; k1 of truncated samples is called no KL."""
    names = {
        "objective/entropy": "entropy",
        "ppo/loss/policy": "policy_loss",
        "ppo/loss/value": "value_loss",
        "ppo/loss/total": "total_loss",
        "ppo/policy/entropy": "entropy",
        "ppo/policy/approxkl": "k3",
        f"ppo/policy/{'logprob_gap' if truncated else 'policykl'}": "k1",
        "ppo/policy/clipfrac": "clipped",
        "ppo/policy/ratio": "ratio",
        "ppo/val/vpred": "value",
        "ppo/val/error": "value_squared_error",
        "ppo/val/clipfrac": "value_clipped",
        "sampler/logprob_drift": "drift",
    }
    return {
        **{name: means[own] for name, own in names.items() if own in means},  # without a critic some are missing
        "ppo/policy/grad_norm": means.get("grad_norm", 0.0),
        "ppo/optimizer_steps": float(steps),
        "ppo/early_stopped": float(stopped),
        **{name: value for name, value in means.items() if name.startswith("trunk_")},
    }
