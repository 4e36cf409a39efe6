"""PPO's clipped surrogate objective (Schulman et al. 2017, equation 7), as a loss to minimise.

Does not whiten or detach the advantages, and adds no entropy bonus: `aggregate` an entropy tensor with the same
count for that. Pass log-probabilities in fp32 or fp64, of the same softmax(logits ÷ temperature) on both sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.algorithms.kl import LOG_RATIO_LIMIT, k1, k3
from hydralign.algorithms.masked import Average, aggregate, zero_masked


def clipped_policy_loss(
    policy_logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    average: Average = "token",
    count: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """−min(ratio·A, clip(ratio, 1 ± clip)·A), averaged as `aggregate` says over `count` tokens or rows.

    ratio = π/π_old, its logarithm clamped to ±`LOG_RATIO_LIMIT`. The clamp would swallow an infinite
    log-probability (not NaN); the unclamped `k1` shows it.

    Stats are detached sums over the unmasked tokens; add them up, then divide once by the number of tokens:
    `clipped` tokens whose gradient the clip has removed, `ratio`, and `k1`, `k3` of KL(old‖policy) in nats.
    """
    log_ratio_BR = -k1(old_logprobs_BR, policy_logprobs_BR, mask_BR)
    ratio_BR = log_ratio_BR.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    advantages_BR = zero_masked(advantages_BR, mask_BR)
    gain_BR = ratio_BR * advantages_BR
    clipped_gain_BR = ratio_BR.clamp(1 - clip, 1 + clip) * advantages_BR
    loss = -aggregate(torch.minimum(gain_BR, clipped_gain_BR), mask_BR, average=average, count=count)
    stats = {
        "clipped": (clipped_gain_BR < gain_BR).to(gain_BR.dtype).sum(),
        "ratio": zero_masked(ratio_BR, mask_BR).sum(),
        "k1": -log_ratio_BR.sum(),
        "k3": k3(old_logprobs_BR, policy_logprobs_BR, mask_BR).sum(),
    }
    return loss, {name: total.detach() for name, total in stats.items()}
