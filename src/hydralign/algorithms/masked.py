"""Sums, moments and whitening over the entries that a mask keeps, and the denominators of losses.

Does not look at other processes: `masked_moments` returns sums that a loop adds up over micro-batches and
processes before it whitens, so that whitening is global. Whitening follows Ziegler et al. 2019 (biased variance,
ε = 1e-8 inside the root).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hydralign.errors import ConfigError

Average = Literal["token", "sequence"]

_EPSILON = 1e-8


def zero_masked(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """`x_BR` where the mask is True, 0 elsewhere.

    A selection, not a product: NaN · 0 is NaN, in the forward pass and in the gradient.
    """
    return torch.where(mask_BR, x_BR, 0.0)


def masked_sum(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Sum of the unmasked entries."""
    return zero_masked(x_BR, mask_BR).sum()


def masked_mean(x_BR: Tensor, mask_BR: Tensor, count: float | Tensor | None = None) -> Tensor:
    """Sum of the unmasked entries ÷ `count`, by default the number of unmasked entries here.

    Give `count` to average over more than this tensor (one optimizer step over all micro-batches and processes).
    A count below 1 divides by 1, so the mean of nothing is 0.
    """
    return masked_sum(x_BR, mask_BR) / _at_least_one(mask_BR.sum() if count is None else count)


def aggregate(per_token_BR: Tensor, mask_BR: Tensor, *, average: Average, count: float | Tensor) -> Tensor:
    """One number from a loss per token; `count` is that of the whole optimizer step.

    - "token": Σ tokens ÷ `count` tokens. Every token weighs the same, long answers weigh more.
    - "sequence": Σ rows (mean over the row's own tokens) ÷ `count` rows. Every answer weighs the same. A row
      without tokens adds 0; whether `count` includes such rows is the caller's choice.

    Raises ConfigError for another `average`.
    """
    if average == "token":
        return masked_mean(per_token_BR, mask_BR, count)
    if average == "sequence":
        row_means_B = zero_masked(per_token_BR, mask_BR).sum(-1) / _at_least_one(mask_BR.sum(-1))
        return row_means_B.sum() / _at_least_one(count)
    raise ConfigError(
        f"average={average!r} is no way to average a loss: it names no denominator. Use 'token' or 'sequence'."
    )


def masked_moments(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """(count, sum, sum of squares) of the unmasked entries, float64, shape [3].

    Moments of parts add up to the moments of the whole. In float64 the variance that follows has a relative
    error near 1e-16·(mean ÷ std)², harmless for rewards and advantages.
    """
    x_BR = zero_masked(x_BR.to(torch.float64), mask_BR)
    return torch.stack([mask_BR.sum().to(torch.float64), x_BR.sum(), x_BR.square().sum()])


def mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (÷ count) from added `masked_moments`; both 0 when nothing was counted."""
    count, total, squares = moments
    count = _at_least_one(count)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0.0)


def whiten(
    x_BR: Tensor, mask_BR: Tensor, *, mean: float | Tensor, variance: float | Tensor, subtract_mean: bool = True
) -> Tensor:
    """(x − mean) ÷ √(variance + 1e-8), plus the mean again unless `subtract_mean`; 0 outside the mask.

    `subtract_mean=False` rescales the spread around an unmoved mean; it is not x ÷ std.
    """
    white_BR = (zero_masked(x_BR, mask_BR) - mean) * (variance + _EPSILON) ** -0.5
    return zero_masked(white_BR if subtract_mean else white_BR + mean, mask_BR)


def _at_least_one(count: float | Tensor) -> float | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
