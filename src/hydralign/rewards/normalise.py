"""Scores brought to scale before the KL penalty: divided, clipped, and lowered for answers that never ended.

The mean stays, since advantages and the value head take care of it; only the scale is changed.
Moments of all scores so far are merged in parallel form (Chan, Golub, LeVeque 1983), in Python's 64-bit floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations (`m2`) of the scores so far."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def updated(self, scores_B: Tensor) -> RunningMoments:
        """These moments with the scores added."""
        if not scores_B.numel():
            return self
        scores_B = scores_B.detach().double()
        mean = scores_B.mean()
        return self.merged(RunningMoments(scores_B.numel(), float(mean), float((scores_B - mean).square().sum())))

    def merged(self, other: RunningMoments) -> RunningMoments:
        """The moments of both sets of scores together, in whichever order they came."""
        count = self.count + other.count
        if not count:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        return RunningMoments(count, mean, self.m2 + other.m2 + gap**2 * self.count * other.count / count)

    @property
    def std(self) -> float:
        """Biased standard deviation; 1 while there is nothing to scale by: no score yet, or all of them equal."""
        std = math.sqrt(self.m2 / self.count) if self.count else 0.0
        # Equal scores leave rounding noise in m2; dividing by its root would blow them up.
        return std if std > 1e-12 * abs(self.mean) else 1.0


def shape_scores(
    scores_B: Tensor,
    finished_B: Tensor,
    *,
    std: float | None = None,
    clip: float | None = None,
    missing_eos_penalty: float | None = None,
) -> Tensor:
    """`scores_B` divided by `std`, clipped to [-clip, clip], less the penalty where `finished_B` is False.

    In this order, so that the penalty is neither scaled nor clipped away. None leaves a stage out.
    """
    if std is not None:
        scores_B = scores_B / std
    if clip is not None:
        scores_B = scores_B.clamp(-clip, clip)
    if missing_eos_penalty is not None:
        scores_B = scores_B - missing_eos_penalty * (~finished_B).to(scores_B.dtype)
    return scores_B
