"""The learning rate as a pure function of the iteration, so that a resumed run cannot be out of step."""

from __future__ import annotations

import math
from typing import Literal

import torch


def learning_rate_at(
    step: int, *, steps: int, peak: float, warmup_steps: int, decay: Literal["constant", "linear", "cosine"]
) -> float:
    """The rate of iteration `step` (from 0): rises linearly over `warmup_steps`, then decays towards 0 at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return peak * factor[decay]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in every parameter group from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
