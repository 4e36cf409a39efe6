"""Learning from given rows: gradients of one loss, an optimizer step, now and then a measure and a checkpoint.

SFT and reward training both run through `learn`; each says in a `SupervisedTask` what its rows and its loss are. A
step's loss is a local sum over the global count of the step, so micro-batches and processes add up to one gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hydralign.config.training import SupervisedConfig
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.methods.oom_hints import supervised_oom_hints
from hydralign.methods.start import set_rate, start_run
from hydralign.micro_batches import MicroBatcher
from hydralign.tracking import Trackers
from hydralign.training.optimizer import accumulate, apply_gradients
from hydralign.training.run import Run

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
    task: SupervisedTask[Any],
    config: SupervisedConfig,
    folder: Path,
    records: Trackers,
    *,
    processes: Distributed = SINGLE_PROCESS,
) -> None:
    """Take the task's optimizer steps, from the newest checkpoint in `folder` or from the start.

    Raises NonFiniteError after `stop_after_bad_steps` non-finite steps in a row, KeyboardInterrupt after a checkpoint
    when interrupted.
    """
    run = start_supervised_run(task, config, folder, records, processes)
    rows = run.micro_batches("micro_batch_size", config.batch.micro_batch_size, supervised_oom_hints(config))
    with run:
        for step in run:
            with run.attempt():
                rate = set_rate(run, config, warmup_steps=round(config.optimizer.warmup * task.steps))
                # 1. Gradients of the step's loss.
                stats = accumulate_gradients(task, task.batch(step), run.optimizer, rows, processes)
                # 2. A clipped step on them.
                norm = apply_gradients(run.optimizer, task.trained, config.optimizer.max_grad_norm, processes)
                metrics = {**stats, "grad_norm": float(norm), "learning_rate": rate}
                run.log(metrics, shown={"loss": stats["loss"]})
            # 3. Held-out evaluation when it is due.
            run.measure(task.measure, every=config.evaluation.every)


def start_supervised_run(
    task: SupervisedTask[Any], config: SupervisedConfig, folder: Path, records: Trackers, processes: Distributed
) -> Run[None]:
    """The run in `folder`, at its newest checkpoint or at the start. Raises as `Run.resume` does."""
    processes.require_shares(config.batch.rows, "batch.rows")
    return start_run(
        task.name,
        config,
        task.trained,
        steps=task.steps,
        state=None,
        read_state=lambda _: None,
        folder=folder,
        records=records,
        processes=processes,
    )


def accumulate_gradients(
    task: SupervisedTask[Any],
    items: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    fits: MicroBatcher,
    processes: Distributed = SINGLE_PROCESS,
) -> dict[str, float]:
    """Gradients of one step's loss from this process's share of the rows; returns the step's global means.

    Raises NonFiniteError as `accumulate` does.
    """
    own = sorted(items[processes.share(len(items))], key=task.size)
    count = float(task.count(items))

    def loss(few: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        part, sums = task.loss([own[row] for row in few], count)
        named = {"loss": part.detach() * count, **sums}
        return part, {name: value.double() for name, value in named.items()}

    totals = accumulate(
        loss,
        range(len(own)),
        optimizer,
        fits,
        processes,
        where="",
        hint="look for broken rows",
    )
    sums = processes.sum(torch.stack([totals[name].to(processes.device) for name in totals]))
    return {name: total / count for name, total in zip(totals, sums.tolist(), strict=True)}
