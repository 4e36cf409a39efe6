"""Per-token estimates of KL(policy‖reference), and the coefficient that follows a target KL.

The estimators (Schulman 2020, "Approximating KL divergence") hold for tokens *sampled from the first argument*:
averaged over samples of the policy both give KL(policy‖ref) exactly. With the arguments swapped k3 estimates
something else. The exact KL over the vocabulary is not computed here.
"""

from __future__ import annotations

import math

from torch import Tensor

from hydralign.algorithms.masked import zero_masked
from hydralign.errors import NonFiniteError

LOG_RATIO_LIMIT = 20.0
"""Bound on a log-ratio before exp: e²⁰ ≈ 4.9e8 is absurd already, but finite in fp32 (which overflows at e⁸⁸), so
that one absurd token cannot turn sums, or gradients as ∞·0, into NaN. Beyond the bound the gradient is 0."""


def k1(policy_logprobs_BR: Tensor, ref_logprobs_BR: Tensor, mask_BR: Tensor | None = None) -> Tensor:
    """log π − log ρ per token, in nats: unbiased, of either sign; summed over an answer it is the log-ratio.

    Not clamped. 0 outside the mask when one is given.
    """
    if mask_BR is None:
        return policy_logprobs_BR - ref_logprobs_BR
    return zero_masked(policy_logprobs_BR, mask_BR) - zero_masked(ref_logprobs_BR, mask_BR)


def gap_name(*, truncated: bool) -> str:
    """What the sum of k1 over an answer is called: "kl", or "logprob_gap" for answers that top-k or top-p cut off.

    Those are drawn from another distribution than the one whose log-probabilities are compared, so that their mean is
    no KL: it can be far below 0 where the KL is above.
    """
    return "logprob_gap" if truncated else "kl"


def k3(policy_logprobs_BR: Tensor, ref_logprobs_BR: Tensor, mask_BR: Tensor | None = None) -> Tensor:
    """ρ/π − 1 − log(ρ/π) per token, in nats: unbiased, never negative, less noisy than k1 near 0.

    log(ρ/π) is clamped from above at `LOG_RATIO_LIMIT`. 0 outside the mask when one is given.
    """
    log_ratio_BR = -k1(policy_logprobs_BR, ref_logprobs_BR, mask_BR).clamp(min=-LOG_RATIO_LIMIT)
    # expm1, because exp(x) - 1 - x loses every digit for the small x of a policy that has barely moved.
    return log_ratio_BR.expm1() - log_ratio_BR


def adapt_coefficient(coefficient: float, *, kl: float, target: float, horizon: float, rows: int) -> float:
    """β · (1 + clip(kl ÷ target − 1, ±0.2) · rows ÷ horizon) (Ziegler et al. 2019, section 2.2).

    `kl` is the mean over answers of the k1 sum per answer, in the unit of `target` (nats per answer); `rows` is the
    number of answers of this iteration over all processes (the gain rows ÷ horizon is that of the paper's code). A
    negative kl lowers β like any kl below the target.
    Raises NonFiniteError when `kl` is not finite.
    """
    if not math.isfinite(kl):
        raise NonFiniteError(
            "kl", f"the measured KL is {kl}: the KL coefficient would follow noise. Skip the iteration that gave it."
        )
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * rows / horizon)
