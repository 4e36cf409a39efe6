"""Learning from given rows: gradients of one loss, an optimizer step, now and then a measure and a checkpoint.

SFT and reward training both run through `learn`; each says in a `SupervisedTask` what its rows and its loss are. A
step's loss is a local sum over the global count of the step, so micro-batches and processes add up to one gradient.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hydralign.config.training import SupervisedConfig
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, NonFiniteError
from hydralign.methods.oom_hints import supervised_oom_hints
from hydralign.micro_batches import MicroBatcher
from hydralign.progress import progress
from hydralign.training.checkpoints import resume, whole_number, write_checkpoint
from hydralign.training.interruption import interruptible
from hydralign.training.optimizer import apply_gradients, make_optimizer
from hydralign.training.records import Records
from hydralign.training.schedule import learning_rate_at, set_learning_rate

Item = TypeVar("Item")


@dataclass(frozen=True)
class SupervisedTask(Generic[Item]):
    """What is learned."""

    name: str
    """For the progress line."""
    trained: dict[str, torch.nn.Parameter]
    steps: int
    batch: Callable[[int], Sequence[Item]]
    """All processes' rows of a step; a function of the step alone."""
    count: Callable[[Sequence[Item]], int]
    """What the loss is averaged over: tokens, pairs or texts of these rows."""
    loss: Callable[[Sequence[Item], float], tuple[Tensor, dict[str, Tensor]]]
    """(loss, stats) of a few rows: their sum ÷ the given count, and detached sums to be divided by it likewise."""
    measure: Callable[[], Mapping[str, float]]
    """Held-out metrics over all processes."""
    size: Callable[[Item], int] = lambda _: 0
    """Tokens of a row: rows of like size share a micro-batch, which spares padding."""


def steps_of(config: SupervisedConfig, rows: int) -> int:
    """Optimizer steps of the wanted epochs over `rows` rows, at least one; the last step may begin another epoch."""
    return max(1, math.ceil(config.epochs * rows / config.batch.rows))


def learn(
    lesson: SupervisedTask[Any],
    config: SupervisedConfig,
    folder: Path,
    records: Records,
    *,
    processes: Distributed = SINGLE_PROCESS,
) -> None:
    """Take the lesson's optimizer steps, from the newest checkpoint in `folder` or from the start.

    Raises NonFiniteError after `stop_after_bad_steps` poisoned steps in a row, KeyboardInterrupt after a checkpoint
    when interrupted.
    """
    processes.require_shares(config.batch.rows, "batch.rows")
    optimizer = make_optimizer(lesson.trained, learning_rate=_peak(config), **_adam(config))
    step, bad = _resumed(lesson, folder, records, optimizer, processes)
    too_bad = min(config.stop_after_bad_steps, lesson.steps)
    if bad >= too_bad and step >= lesson.steps:
        raise NonFiniteError(
            "checkpoint",
            f"The run in {folder} ended with {bad} poisoned steps in a row, so it has not learned. Lower the "
            "learning rate or use precision fp32, delete that folder, and run again.",
        )
    fits = MicroBatcher(
        config.batch.micro_rows,
        on_change=lambda rows: _short_of_memory(records, step, rows),
        remedies=supervised_oom_hints(config),
    )
    with (
        interruptible() as interrupted,
        progress(lesson.name, lesson.steps, start=step, stream=_quiet(processes)) as bar,
    ):
        while step < lesson.steps:
            rate = _rate(config, step, lesson.steps)
            set_learning_rate(optimizer, rate)
            try:
                # 1. Gradients of the step's loss. 2. A clipped step on them.
                stats = accumulate(lesson, lesson.batch(step), optimizer, fits, processes)
                norm = apply_gradients(optimizer, lesson.trained, config.optimizer.max_grad_norm, processes)
                # 3. Report.
                records.tracker.log(step, {**stats, "grad_norm": float(norm), "learning_rate": rate})
                step, bad = step + 1, 0
                bar.update(step, {"loss": stats["loss"]})
            except NonFiniteError as error:
                step, bad = step + 1, bad + 1
                records.tracker.event(step - 1, "non_finite", {"where": error.where, "message": str(error)})
                poison = error
            # 4. Measure and save when due, and stop if something asks for it.
            if config.evaluation.every and step % config.evaluation.every == 0 and step < lesson.steps:
                _measure(lesson, records, step)
            stopping = processes.any(interrupted.is_set())
            ruined = bad >= too_bad
            every = config.saving.checkpoint_every
            if stopping or ruined or step == lesson.steps or (every and step % every == 0):
                _save(lesson, config, folder, records, optimizer, step, bad, processes)
            if ruined:
                raise _diagnosis(bad, poison, folder) from poison
            if stopping:
                raise KeyboardInterrupt


def accumulate(
    lesson: SupervisedTask[Any],
    items: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    fits: MicroBatcher,
    processes: Distributed = SINGLE_PROCESS,
) -> dict[str, float]:
    """Gradients of one step's loss from this process's share of the rows; returns the step's global means.

    No backward pass on a poisoned loss: raises NonFiniteError on every process instead.
    """
    own = sorted(items[processes.share(len(items))], key=lesson.size)
    count = float(lesson.count(items))

    def gradients(micro_rows: int) -> tuple[dict[str, Tensor], bool]:
        totals: dict[str, Tensor] = {}
        for start in range(0, len(own), micro_rows):
            loss, stats = lesson.loss(own[start : start + micro_rows], count)
            if not bool(torch.isfinite(loss)):
                return totals, True
            loss.backward()
            for name, value in {"loss": loss.detach() * count, **stats}.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + value.double()
        return totals, False

    optimizer.zero_grad(set_to_none=True)
    forget = partial(optimizer.zero_grad, set_to_none=True)
    totals, poisoned = fits.run(gradients, processes, total=len(own), undo=forget)
    if processes.any(poisoned):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(
            "loss",
            "The loss is NaN or infinite: a step on it would destroy every weight, so none was taken. Lower the "
            "learning rate, look for broken rows, or use precision fp32.",
        )
    sums = processes.sum(torch.stack([totals[name].to(processes.device) for name in totals]))
    return {name: total / count for name, total in zip(totals, sums.tolist(), strict=True)}


def _measure(lesson: SupervisedTask[Any], records: Records, step: int) -> None:
    """Log the held-out metrics after `step` steps; poison there is an event, and training goes on."""
    try:
        metrics = lesson.measure()
    except NonFiniteError as error:
        records.tracker.event(step - 1, "non_finite", {"where": f"evaluation/{error.where}", "message": str(error)})
    else:
        records.tracker.log(step - 1, metrics)


def _short_of_memory(records: Records, step: int, rows: int) -> None:
    records.tracker.event(step, "out_of_memory", {"micro_rows": rows})


def _rate(config: SupervisedConfig, step: int, steps: int) -> float:
    warmup = round(config.optimizer.warmup * steps)
    return learning_rate_at(step, steps=steps, peak=_peak(config), warmup_steps=warmup, decay=config.optimizer.decay)


def _peak(config: SupervisedConfig) -> float:
    rate = config.optimizer.learning_rate
    if rate is None:
        raise ConfigError(
            "optimizer.learning_rate is None: it depends on what is trained. Give a number, or take the config from "
            "`load_recipe` or `Recipe.resolved()`, which fill it in."
        )
    return rate


def _adam(config: SupervisedConfig) -> dict[str, Any]:
    return config.optimizer.model_dump(include={"type", "betas", "eps", "weight_decay"})


def _quiet(processes: Distributed) -> io.StringIO | None:
    return None if processes.main else io.StringIO()


def _resumed(
    lesson: SupervisedTask[Any],
    folder: Path,
    records: Records,
    optimizer: torch.optim.Optimizer,
    processes: Distributed,
) -> tuple[int, int]:
    """(steps done, bad steps in a row) of the newest checkpoint, put back into place; (0, 0) of a fresh run."""
    resumed = resume(folder / "checkpoints", lesson.trained, optimizer, _counts, main=processes.main)
    if records.local:
        records.local.cut_back(resumed.metrics_position if resumed else 0)
    return resumed.state if resumed else (0, 0)


def _counts(about: Mapping[str, Any]) -> tuple[int, int]:
    return whole_number(about["step"]), whole_number(about["bad_steps"])


def _save(
    lesson: SupervisedTask[Any],
    config: SupervisedConfig,
    folder: Path,
    records: Records,
    optimizer: torch.optim.Optimizer,
    step: int,
    bad: int,
    processes: Distributed,
) -> None:
    """A checkpoint, written by the main process; all wait for it."""
    if processes.main:
        position = records.local.position() if records.local else 0
        about = {"step": step, "bad_steps": bad, "metrics_position": position}
        write_checkpoint(folder / "checkpoints", step, about, lesson.trained, optimizer, keep=config.saving.keep)
    processes.barrier()


def _diagnosis(bad: int, error: NonFiniteError, folder: Path) -> NonFiniteError:
    return NonFiniteError(
        error.where,
        f"{bad} steps in a row met NaN or infinity, the last at {error.where}: {error} The weights are those of the "
        f"last good step; a checkpoint lies in {folder / 'checkpoints'}.",
    )
