"""What PPO keeps from iteration to iteration beside weights and optimizer, and how a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hydralign.rewards.normalise import RunningMoments
from hydralign.training.checkpoints import whole_number, write_checkpoint


@dataclass(frozen=True)
class PPOState:
    """What changes from iteration to iteration, beside weights and optimizer."""

    step: int = 0
    """Iterations done."""
    kl_coefficient: float = 0.05
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all scores so far."""
    bad_steps: int = 0
    """Poisoned iterations in a row."""


def save_checkpoint(
    folder: Path,
    state: PPOState,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    metrics_position: int,
    keep: int,
) -> None:
    """Write `folder/step-N` of a PPO run. See `write_checkpoint`."""
    about = asdict(state) | {"metrics_position": metrics_position}
    write_checkpoint(folder, state.step, about, trained, optimizer, keep=keep)


def read_ppo_state(about: Mapping[str, Any]) -> PPOState:
    """PPO's state out of state.json. Raises ValueError, KeyError or TypeError when it is damaged."""
    moments = about["moments"]
    return PPOState(
        step=whole_number(about["step"]),
        kl_coefficient=_finite(about["kl_coefficient"]),
        moments=RunningMoments(whole_number(moments["count"]), _finite(moments["mean"]), _finite(moments["m2"])),
        bad_steps=whole_number(about["bad_steps"]),
    )


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
