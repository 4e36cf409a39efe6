"""What PPO keeps from iteration to iteration beside weights and optimizer, and how a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydralign.rewards.normalise import RunningMoments
from hydralign.training.checkpoints import whole_number


@dataclass(frozen=True)
class PPOState:
    """What changes from iteration to iteration, beside weights and optimizer."""

    kl_coefficient: float = 0.05
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all scores so far."""


def read_ppo_state(about: Mapping[str, Any]) -> PPOState:
    """PPO's state out of state.json. Raises ValueError, KeyError or TypeError when it is damaged."""
    moments = about["moments"]
    return PPOState(
        kl_coefficient=_finite(about["kl_coefficient"]),
        moments=RunningMoments(whole_number(moments["count"]), _finite(moments["mean"]), _finite(moments["m2"])),
    )


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
