"""How a method's settings become a run: its optimizer, its checkpoints, the newest of them put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from hydralign.config.ppo import PPOConfig
from hydralign.config.training import SupervisedConfig
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError
from hydralign.tracking import Trackers
from hydralign.training.optimizer import make_optimizer
from hydralign.training.run import Run
from hydralign.training.schedule import learning_rate_at, set_learning_rate

State = TypeVar("State")


def start_run(
    name: str,
    config: PPOConfig | SupervisedConfig,
    trained: Mapping[str, torch.nn.Parameter],
    *,
    steps: int,
    state: State,
    read_state: Callable[[Mapping[str, Any]], State],
    folder: Path,
    records: Trackers,
    processes: Distributed,
) -> Run[State]:
    """The run in `folder`, at its newest checkpoint or at the start. Raises as `Run.resume` and `make_optimizer` do."""
    settings = config.optimizer.model_dump(include={"type", "betas", "eps", "weight_decay"})
    return Run(
        name,
        steps=steps,
        trained=trained,
        optimizer=make_optimizer(trained, learning_rate=peak_rate(config), **settings),
        state=state,
        folder=folder,
        records=records,
        processes=processes,
        checkpoint_every=config.saving.checkpoint_every,
        keep=config.saving.keep,
        stop_after_bad_steps=config.stop_after_bad_steps,
    ).resume(read_state)


def set_rate(run: Run[Any], config: PPOConfig | SupervisedConfig, *, warmup_steps: int) -> float:
    """Give the optimizer the learning rate of the step at hand, and return it."""
    rate = learning_rate_at(
        run.step,
        steps=run.steps,
        peak=peak_rate(config),
        warmup_steps=warmup_steps,
        decay=config.optimizer.decay,
    )
    set_learning_rate(run.optimizer, rate)
    return rate


def peak_rate(config: PPOConfig | SupervisedConfig) -> float:
    """The learning rate after the warm-up. Raises ConfigError where the config leaves it open."""
    rate = config.optimizer.learning_rate
    if rate is None:
        raise ConfigError(
            "optimizer.learning_rate is None: it depends on what is trained, and in which form. Give a number, or take "
            "the config from `load_recipe` or `Recipe.resolved()`, which fill it in."
        )
    return rate
