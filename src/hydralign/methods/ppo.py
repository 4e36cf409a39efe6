"""PPO on answers to prompts: sample, score, estimate, update, report. RLOO and GRPO's advantage are choices within it.

Follows Stiennon et al. 2020 (section 3.4) with the details of Huang et al. 2024 (N+ implementation details).
Departs from them: the score lands on the last real token, every gradient is clipped, samples stop at EOS. The stages
are public (`collect`, `estimate`, `update`); to change the algorithm, write your own loop over them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydralign.algorithms.kl import adapt_coefficient, gap_name, k1
from hydralign.config.ppo import AdaptiveKL, GAEConfig, LeaveOneOutConfig, PPOConfig
from hydralign.data import PromptStream
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError
from hydralign.generation.sampler import Sampler, sample
from hydralign.methods.advantages import GAE, AdvantageEstimator, GroupNormalised, LeaveOneOut, estimate
from hydralign.methods.oom_hints import ppo_oom_hints
from hydralign.methods.policy_update import LossWeights, update
from hydralign.methods.ppo_state import PPOState, read_ppo_state
from hydralign.methods.sampling import sampling_params
from hydralign.methods.start import set_rate, start_run
from hydralign.methods.start_checks import check_start
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.rewards.combine import RewardTerm
from hydralign.rewards.normalise import RunningMoments
from hydralign.rollout import collect
from hydralign.tracking import Trackers
from hydralign.training.run import Run
from hydralign.types import Advantages, Experience, SamplingParams


@dataclass(frozen=True)
class PPOParts:
    """What a PPO run is made of. Any part may be replaced by one's own."""

    policy: Policy
    prompts: PromptStream
    rewards: Sequence[RewardTerm]
    folder: Path
    records: Trackers
    processes: Distributed = SINGLE_PROCESS
    sampler: Sampler = sample
    on_step: Callable[[int, Policy], None] | None = None
    """Called after every good iteration, with the number of them done. An error in it must come on every process."""


def train(config: PPOConfig, parts: PPOParts, *, seed: int = 0) -> Run[PPOState]:
    """Run PPO from the newest checkpoint in `parts.folder`, or from the start; returns the run at its end.

    Raises StartCheckError before the first update when policy, reference and sampler disagree, NonFiniteError after
    `stop_after_bad_steps` non-finite iterations in a row; KeyboardInterrupt, and errors of sampling and scoring, after
    saving.
    """
    policy, processes = parts.policy, parts.processes
    run = start_ppo_run(config, parts)
    rows = _rows_at_once(config, run)
    params, checked, fresh = sampling_params(config.sampling, seed), dict[str, float](), run.step == 0
    with run:
        for step in run:
            with run.attempt():
                started = time.perf_counter()
                rate = set_rate(run, config, warmup_steps=config.optimizer.warmup_steps)
                # 1. Sample answers, score them, read the reference.
                with run.saved_on_failure():
                    experience = processes.raise_together(partial(_collect, config, parts, params, step, rows))
                rows.decode.use_smallest(processes)
                collected = time.perf_counter()
                checked = checked or processes.raise_together(
                    partial(check_start, policy, experience, fresh=fresh, micro_batch_size=rows.micro)
                )
                # 2. Estimate advantages.
                batch = _batch_moments(config, experience, processes)
                run.state = replace(run.state, moments=run.state.moments.merged(batch))
                advantages = _estimate(config, run.state, experience, batch, processes)
                # 3. Update the policy, and the critic where there is one.
                stats = _update(config, parts, run.optimizer, experience, advantages, rows.micro, seed=seed, step=step)
                # 4. Follow the KL target, report.
                run.state = _follow_kl(config, run.state, advantages.stats)
                metrics = {**advantages.stats, **stats, "ppo/learning_rate": rate, **_times(started, collected)}
                run.log(metrics | (checked if step == 0 else {}), shown=_numbers_that_matter(metrics))
                _log_samples(config, parts, step, experience)
            if parts.on_step and not run.bad_steps:
                with run.saved_on_failure():
                    parts.on_step(run.step, policy)
    return run


def start_ppo_run(config: PPOConfig, parts: PPOParts) -> Run[PPOState]:
    """The run in `parts.folder`, at its newest checkpoint or at the start. Raises as `Run.resume` does."""
    parts.processes.require_shares(config.batch.minibatch_rows, "ppo rows per minibatch")
    if config.has_critic != (parts.policy.critic is not None):
        needs, has = ("needs", "none") if config.has_critic else ("has no use for", "one")
        raise ConfigError(
            f"ppo.advantages.type={config.advantages.type} {needs} a critic, and the policy has {has}: values would "
            f"not be learned, or for nothing. Make the policy with critic={config.has_critic}."
        )
    return start_run(
        "ppo",
        config,
        parts.policy.trained(),
        steps=config.steps,
        state=PPOState(kl_coefficient=config.kl.coefficient),
        read_state=read_ppo_state,
        folder=parts.folder,
        records=parts.records,
        processes=parts.processes,
    )


@dataclass(frozen=True)
class _RowsAtOnce:
    """How many rows are read, and decoded, at once; fewer once memory runs out."""

    micro: MicroBatcher
    decode: MicroBatcher


def _rows_at_once(config: PPOConfig, run: Run[PPOState]) -> _RowsAtOnce:
    hints = ppo_oom_hints(config, run.processes.device.type)
    return _RowsAtOnce(
        run.micro_batches("micro_batch_size", config.batch.micro_batch_size, hints),
        run.micro_batches("decode_batch_size", config.sampling.decode_batch_size, hints),
    )


def _collect(config: PPOConfig, parts: PPOParts, params: SamplingParams, step: int, rows: _RowsAtOnce) -> Experience:
    """This process's share of the iteration's rows: each prompt `samples_per_prompt` times, neighbours."""
    batch = config.batch
    prompts = [prompt for prompt in parts.prompts.batch(step, batch.prompts) for _ in range(batch.samples_per_prompt)]
    share = parts.processes.share(len(prompts))
    return collect(
        parts.policy,
        prompts[share],
        parts.rewards,
        params.at(step, first_row=share.start),
        micro_batch_size=rows.micro,
        decode_batch_size=rows.decode,
        sampler=parts.sampler,
    )


def _batch_moments(config: PPOConfig, experience: Experience, processes: Distributed) -> RunningMoments:
    """Moments of this iteration's scores, those of all processes, dense ones summed per answer."""
    return RunningMoments().updated(processes.gather(experience.scores.totals_B, config.batch.rows))


def _estimate(
    config: PPOConfig, state: PPOState, experience: Experience, batch: RunningMoments, processes: Distributed
) -> Advantages:
    shaping = config.shaping
    return estimate(
        experience,
        estimator=_estimator(config),
        kl_coefficient=state.kl_coefficient,
        kl_estimator=config.kl.estimator,
        whiten_advantages=config.advantages.whiten,
        whiten_rewards=shaping.whiten_rewards,
        score_std={"none": None, "batch": batch.std, "running": state.moments.std}[shaping.scale],
        score_clip=shaping.clip,
        missing_eos_penalty=shaping.missing_eos_penalty,
        processes=processes,
    )


def _update(
    config: PPOConfig,
    parts: PPOParts,
    optimizer: torch.optim.Optimizer,
    experience: Experience,
    advantages: Advantages,
    micro: MicroBatcher,
    *,
    seed: int,
    step: int,
) -> dict[str, float]:
    return update(
        parts.policy,
        optimizer,
        experience,
        advantages,
        epochs=config.batch.epochs,
        minibatches=config.batch.minibatches,
        micro_batch_size=micro,
        loss=LossWeights(**config.loss.model_dump(exclude={"target_kl"})),
        target_kl=config.loss.target_kl,
        max_grad_norm=config.optimizer.max_grad_norm,
        seed=seed,
        iteration=step,
        processes=parts.processes,
    )


def _estimator(config: PPOConfig) -> AdvantageEstimator:
    advantages, samples = config.advantages, config.batch.samples_per_prompt
    if isinstance(advantages, GAEConfig):
        return GAE(gamma=advantages.gamma, lam=advantages.lam)
    return LeaveOneOut(samples) if isinstance(advantages, LeaveOneOutConfig) else GroupNormalised(samples)


def _follow_kl(config: PPOConfig, state: PPOState, stats: Mapping[str, float]) -> PPOState:
    """An adaptive controller moves the coefficient towards its target."""
    controller = config.kl.controller
    if not isinstance(controller, AdaptiveKL):
        return state
    coefficient = adapt_coefficient(
        state.kl_coefficient,
        kl=stats.get("objective/kl", math.nan),
        target=controller.target,
        horizon=controller.horizon,
        rows=config.batch.rows,
    )
    return replace(state, kl_coefficient=coefficient)


def _log_samples(config: PPOConfig, parts: PPOParts, step: int, experience: Experience) -> None:
    """Answers of the iteration at hand, when they are due."""
    if step % config.saving.samples_every == 0:
        parts.records.table(step, "samples", sample_rows(experience, config.saving.samples))


def sample_rows(experience: Experience, count: int) -> list[dict[str, Any]]:
    """The first answers of an experience as rows of a table: query, response, score, KL (or what `gap_name` calls it),
    tokens, whether finished.
    """
    gap = gap_name(truncated=experience.truncated)
    rollout = experience.rollout
    mask_BR = rollout.rows.mask_BR
    kl_B = k1(experience.old_logprobs_BR, experience.ref_logprobs_BR, mask_BR).sum(-1)
    columns = (rollout.completions, experience.scores.totals_B.tolist(), kl_B.tolist(), mask_BR.sum(-1).tolist())
    return [
        {"query": prompt.text, "response": text, "reward": score, gap: kl, "tokens": tokens, "finished": finished}
        for prompt, text, score, kl, tokens, finished in zip(
            rollout.prompts[:count], *(c[:count] for c in columns), rollout.finished_B[:count].tolist(), strict=True
        )
    ]


def _numbers_that_matter(metrics: dict[str, float]) -> dict[str, float]:
    gap = gap_name(truncated="objective/kl" not in metrics)
    return {
        "score": metrics["ppo/mean_scores"],
        gap: metrics[f"objective/{gap}"],
        "length": metrics["tokens/responses_len_mean"],
    }


def _times(started: float, collected: float) -> dict[str, float]:
    """Seconds of this process."""
    now = time.perf_counter()
    return {
        "time/ppo/collect": collected - started,
        "time/ppo/update": now - collected,
        "time/ppo/total": now - started,
    }
