"""PPO on answers to prompts: sample, score, estimate, update, report.

Follows Stiennon et al. 2020 (section 3.4) with the details of Huang et al. 2024 (N+ implementation details).
Departs from them: the score lands on the last real token, every gradient is clipped, samples stop at EOS. The stages
are public (`collect`, `estimate`, `update`); to change the algorithm, write your own loop over them.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydralign.algorithms.kl import adapt_coefficient, gap_name, k1
from hydralign.config.ppo import AdaptiveKL, PPOConfig, SamplingConfig
from hydralign.data import PromptStream
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, HydralignError, NonFiniteError, StorageError
from hydralign.generation.sampler import Sampler, sample
from hydralign.methods.advantages import estimate
from hydralign.methods.oom_hints import ppo_oom_hints
from hydralign.methods.policy_update import LossWeights, update
from hydralign.methods.ppo_state import PPOState, read_ppo_state, save_checkpoint
from hydralign.methods.start_checks import check_start
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.progress import progress, say
from hydralign.rewards.combine import RewardTerm
from hydralign.rewards.normalise import RunningMoments
from hydralign.rollout import collect
from hydralign.tracking import JsonLines, Tracker
from hydralign.training.checkpoints import checkpoints, resume
from hydralign.training.interruption import interruptible
from hydralign.training.optimizer import make_optimizer
from hydralign.training.schedule import learning_rate_at, set_learning_rate
from hydralign.types import Advantages, Experience, SamplingParams


@dataclass(frozen=True)
class PPOParts:
    """What a PPO run is made of. Any part may be replaced by one's own."""

    policy: Policy
    prompts: PromptStream
    rewards: Sequence[RewardTerm]
    folder: Path
    tracker: Tracker
    record: JsonLines | None = None
    """The local metrics file, cut back when a run resumes; None on processes that do not write."""
    processes: Distributed = SINGLE_PROCESS
    sampler: Sampler = sample
    on_step: Callable[[int, Policy], None] | None = None
    """Called after every iteration, with the number of iterations done. An error in it must come on every process."""


def train(config: PPOConfig, parts: PPOParts, *, seed: int = 0) -> PPOState:
    """Run PPO from the newest checkpoint in `parts.folder`, or from the start; returns the final state.

    Raises StartCheckError before the first update when policy, reference and sampler disagree, NonFiniteError after
    `stop_after_bad_steps` bad iterations in a row; KeyboardInterrupt, and errors of sampling and scoring, after saving.
    """
    policy, processes = parts.policy, parts.processes
    processes.require_shares(config.batch.minibatch_rows, "ppo rows per minibatch")
    plan = sampling_params(config.sampling, seed)
    optimizer = _optimizer(config, policy)
    state = _resumed(config, parts, optimizer)
    micro, decode = _rows_at_once(config, parts, lambda: state.step)
    poison: NonFiniteError | None = None
    fresh, measured = state.step == 0, dict[str, float]()
    quiet = None if processes.main else io.StringIO()
    with interruptible() as interrupted, progress("ppo", config.steps, start=state.step, stream=quiet) as bar:
        while state.step < config.steps:
            started, step = time.perf_counter(), state.step
            rate = learning_rate_at(
                step,
                steps=config.steps,
                peak=_peak(config),
                warmup_steps=config.optimizer.warmup_steps,
                decay=config.optimizer.decay,
            )
            set_learning_rate(optimizer, rate)
            try:
                # 1. Sample answers, score them, read the reference.
                with _saved_on_failure(config, parts, state, optimizer):
                    experience = processes.raise_together(partial(_collect, config, parts, plan, step, micro, decode))
                decode.use_smallest(processes)
                collected = time.perf_counter()
                if not measured:
                    check = partial(check_start, policy, experience, fresh=fresh, micro_rows=micro)
                    measured = processes.raise_together(check)
                # 2. Estimate advantages.
                batch = _batch_moments(config, experience, processes)
                state = replace(state, moments=state.moments.merged(batch))
                estimates = _estimate(config, state, experience, batch, processes)
                # 3. Update policy and values.
                stats = _update(config, parts, optimizer, experience, estimates, micro, seed=seed, iteration=step)
                # 4. Follow the KL target, report.
                state = _advanced(config, state, estimates.stats.get("objective/kl", math.nan))
                metrics = {**estimates.stats, **stats, "ppo/learning_rate": rate, **_times(started, collected)}
                _report(config, parts, state, {**metrics, **(measured if step == 0 else {})}, experience)
                bar.update(state.step, _numbers_that_matter(metrics))
            except NonFiniteError as error:
                state, poison = _poisoned(parts, state, error), error
            if parts.on_step and not state.bad_steps:
                with _saved_on_failure(config, parts, state, optimizer):
                    parts.on_step(state.step, policy)
            # 5. Save, and stop if something asks for it.
            stopping = processes.any(interrupted.is_set())
            ruined = _is_ruined(config, state)
            _save(config, parts, state, optimizer, last=stopping or ruined)
            if ruined:
                raise _diagnosis(parts, state, poison) from poison
            if stopping:
                raise KeyboardInterrupt
    return state


def sampling_params(config: SamplingConfig, seed: int) -> SamplingParams:
    """The sampler's plain arguments out of a recipe's section."""
    return SamplingParams(
        temperature=config.temperature,
        min_new_tokens=config.min_new_tokens,
        max_new_tokens=config.max_new_tokens,
        lengths=(config.lengths.low, config.lengths.high) if config.lengths else None,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=seed,
        decode_rows=config.decode_rows,
    )


def _rows_at_once(config: PPOConfig, parts: PPOParts, step: Callable[[], int]) -> tuple[MicroBatcher, MicroBatcher]:
    """(micro_rows, decode_rows) of the whole run: what once ran out of memory is not tried again. Events name both."""

    remedies = ppo_oom_hints(config, parts.processes.device.type)

    def begin(name: str, rows: int) -> MicroBatcher:
        def note(fewer: int) -> None:
            parts.tracker.event(step(), "out_of_memory", {name: fewer})

        return MicroBatcher(rows, name=name, speaks=parts.processes.main, on_change=note, remedies=remedies)

    return begin("micro_rows", config.batch.micro_rows), begin("decode_rows", config.sampling.decode_rows)


def _collect(
    config: PPOConfig, parts: PPOParts, plan: SamplingParams, step: int, micro: MicroBatcher, decode: MicroBatcher
) -> Experience:
    """This process's share of the iteration's rows: each prompt `samples_per_prompt` times, neighbours."""
    batch = config.batch
    prompts = [prompt for prompt in parts.prompts.batch(step, batch.prompts) for _ in range(batch.samples_per_prompt)]
    share = parts.processes.share(len(prompts))
    return collect(
        parts.policy,
        prompts[share],
        parts.rewards,
        plan.at(step, first_row=share.start),
        micro_rows=micro,
        decode_rows=decode,
        sampler=parts.sampler,
    )


def _batch_moments(config: PPOConfig, experience: Experience, processes: Distributed) -> RunningMoments:
    """Moments of this iteration's scores, those of all processes, dense ones summed per answer."""
    return RunningMoments().updated(processes.gather(experience.scores.totals_B, config.batch.rows))


def _estimate(
    config: PPOConfig, state: PPOState, experience: Experience, batch: RunningMoments, processes: Distributed
) -> Advantages:
    shaping, advantages = config.shaping, config.advantages
    return estimate(
        experience,
        kl_coefficient=state.kl_coefficient,
        kl_estimator=config.kl.estimator,
        gamma=advantages.gamma,
        lam=advantages.lam,
        whiten_advantages=advantages.whiten,
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
    estimates: Advantages,
    micro: MicroBatcher,
    *,
    seed: int,
    iteration: int,
) -> dict[str, float]:
    return update(
        parts.policy,
        optimizer,
        experience,
        estimates,
        epochs=config.batch.epochs,
        minibatches=config.batch.minibatches,
        micro_rows=micro,
        loss=LossWeights(**config.loss.model_dump(exclude={"target_kl"})),
        target_kl=config.loss.target_kl,
        max_grad_norm=config.optimizer.max_grad_norm,
        seed=seed,
        iteration=iteration,
        processes=parts.processes,
    )


def _optimizer(config: PPOConfig, policy: Policy) -> torch.optim.Optimizer:
    settings = config.optimizer.model_dump(include={"type", "betas", "eps", "weight_decay"})
    return make_optimizer(policy.trained(), learning_rate=_peak(config), **settings)


def _peak(config: PPOConfig) -> float:
    rate = config.optimizer.learning_rate
    if rate is None:
        raise ConfigError(
            "ppo.optimizer.learning_rate is None: it depends on the form of the model. Give a number, or take the "
            "config from `load_recipe` or `Recipe.resolved()`, which fill it in."
        )
    return rate


def _resumed(config: PPOConfig, parts: PPOParts, optimizer: torch.optim.Optimizer) -> PPOState:
    """The state of the newest checkpoint, put back into policy, optimizer and metrics file; or a fresh one.

    Raises NonFiniteError when the run ended poisoned: it has no iterations left, and would pass for finished.
    """
    resumed = resume(
        parts.folder / "checkpoints", parts.policy.trained(), optimizer, read_ppo_state, main=parts.processes.main
    )
    if resumed is None:
        if parts.record:
            parts.record.cut_back(0)
        return PPOState(kl_coefficient=config.kl.coefficient)
    state = resumed.state
    if _is_ruined(config, state) and state.step >= config.steps:
        raise NonFiniteError(
            "checkpoint",
            f"The run in {parts.folder} ended with {state.bad_steps} poisoned iterations in a row, so it has not "
            "learned. Lower the learning rate or use precision fp32, delete that folder, and run again.",
        )
    if parts.record:
        parts.record.cut_back(resumed.metrics_position)
    return state


def _advanced(config: PPOConfig, state: PPOState, kl: float) -> PPOState:
    """One more good iteration; an adaptive controller moves the coefficient."""
    coefficient, controller = state.kl_coefficient, config.kl.controller
    if isinstance(controller, AdaptiveKL):
        coefficient = adapt_coefficient(
            coefficient, kl=kl, target=controller.target, horizon=controller.horizon, rows=config.batch.rows
        )
    return replace(state, step=state.step + 1, kl_coefficient=coefficient, bad_steps=0)


def _poisoned(parts: PPOParts, state: PPOState, error: NonFiniteError) -> PPOState:
    """Log the event; the rest of the iteration's updates are skipped."""
    bad_steps = state.bad_steps + 1
    parts.tracker.event(state.step, "non_finite", {"where": error.where, "message": str(error)})
    if parts.processes.main:
        say(f"Iteration {state.step} skipped ({bad_steps} in a row): {error}")
    return replace(state, step=state.step + 1, bad_steps=bad_steps)


def _is_ruined(config: PPOConfig, state: PPOState) -> bool:
    """Whether too many iterations in a row were poisoned."""
    return state.bad_steps >= min(config.stop_after_bad_steps, config.steps)


def _diagnosis(parts: PPOParts, state: PPOState, error: NonFiniteError | None) -> NonFiniteError:
    where = error.where if error else "unknown"
    return NonFiniteError(
        where,
        f"{state.bad_steps} iterations in a row met NaN or infinity, the last at {where}: {error} The weights "
        f"are those of the last good optimizer step; a checkpoint lies in {parts.folder / 'checkpoints'}.",
    )


def _report(
    config: PPOConfig, parts: PPOParts, state: PPOState, metrics: dict[str, float], experience: Experience
) -> None:
    """Metrics of the iteration just done, and samples when they are due."""
    parts.tracker.log(state.step - 1, metrics)
    if (state.step - 1) % config.saving.samples_every == 0:
        parts.tracker.table(state.step - 1, "samples", sample_rows(experience, config.saving.samples))


def _save(config: PPOConfig, parts: PPOParts, state: PPOState, optimizer: torch.optim.Optimizer, *, last: bool) -> None:
    """A checkpoint when one is due, written by the main process; all wait for it."""
    saving = config.saving
    due = saving.checkpoint_every and state.step % saving.checkpoint_every == 0
    if parts.processes.main and (due or last or state.step == config.steps):
        _write(config, parts, state, optimizer)
    parts.processes.barrier()


def _write(config: PPOConfig, parts: PPOParts, state: PPOState, optimizer: torch.optim.Optimizer) -> None:
    save_checkpoint(
        parts.folder / "checkpoints",
        state,
        parts.policy.trained(),
        optimizer,
        metrics_position=parts.record.position() if parts.record else 0,
        keep=config.saving.keep,
    )


@contextmanager
def _saved_on_failure(
    config: PPOConfig, parts: PPOParts, state: PPOState, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """An error of hydralign in this block, which changes no weight and fails on all processes, is raised after a
    checkpoint of the iterations done. Poison is no failure, and a disk that failed once gets no checkpoint.
    """
    try:
        yield
    except NonFiniteError:
        raise
    except Exception as error:
        unsafe = not isinstance(error, HydralignError) or isinstance(error, StorageError)
        if not parts.processes.any(unsafe) and state.step:
            parts.processes.raise_together(partial(_keep_done, config, parts, state, optimizer))
        raise


def _keep_done(config: PPOConfig, parts: PPOParts, state: PPOState, optimizer: torch.optim.Optimizer) -> None:
    """Let the main process see to a checkpoint of the iterations done and say where it is."""
    if not parts.processes.main:
        return
    folder = parts.folder / "checkpoints"
    try:
        if folder / f"step-{state.step}" not in checkpoints(folder):
            _write(config, parts, state, optimizer)
    except StorageError as error:
        say(f"The {state.step} iterations done could not be kept: {error}")
    else:
        say(
            f"Iterations done: {state.step}, kept in {folder / f'step-{state.step}'}. Once the error below is mended, "
            "the same command goes on from there."
        )


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
