"""Advantages: generalised advantage estimation over tokens (Schulman et al. 2016, equation 16), and two estimators that
need no values because they compare several answers to one prompt.

Nothing here whitens or detaches: pass rewards and values that carry no gradient. `gae` departs from the general form
in one convention: nothing is bootstrapped after the last real token, of truncated answers as of finished ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.algorithms.masked import zero_masked


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """`(advantages_BR, returns_BR)`, in fp32 (fp64 for fp64 input), 0 outside the mask.

    δₜ = rₜ + γ·Vₜ₊₁ − Vₜ;  Aₜ = δₜ + γλ·Aₜ₊₁;  returns = A + V, with V = A = 0 after the last real token.
    Vₜ is the value before token t. λ = 1 is Monte Carlo return minus value, λ = 0 the one-step error.
    Masks are prefixes of the row (right padding). Masked columns are stepped over, not treated as states of value 0.
    """
    dtype = torch.promote_types(torch.promote_types(rewards_BR.dtype, values_BR.dtype), torch.float32)
    rewards_BR, values_BR = zero_masked(rewards_BR.to(dtype), mask_BR), zero_masked(values_BR.to(dtype), mask_BR)
    advantages_BR = torch.zeros_like(rewards_BR)
    next_value_B = next_advantage_B = rewards_BR.new_zeros(rewards_BR.shape[0])
    for t in reversed(range(rewards_BR.shape[1])):
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BR[:, t] = zero_masked(advantage_B, mask_BR[:, t])
        next_advantage_B = torch.where(mask_BR[:, t], advantage_B, next_advantage_B)
        next_value_B = torch.where(mask_BR[:, t], values_BR[:, t], next_value_B)
    return advantages_BR, advantages_BR + values_BR


def leave_one_out(returns_PG: Tensor) -> Tensor:
    """`advantages_PG`: each answer's return minus the mean of the other answers to its prompt (RLOO: Kool et al. 2019;
    Ahmadian et al. 2024, equation 7). Unbiased, since no answer is in its own baseline; needs G ≥ 2.
    """
    answers = returns_PG.shape[1]
    return (returns_PG - returns_PG.mean(1, keepdim=True)) * (answers / (answers - 1))


def group_normalised(returns_PG: Tensor, *, eps: float = 1e-4) -> Tensor:
    """`advantages_PG`: each answer's return minus the mean of its prompt's answers, ÷ (their standard deviation + eps)
    (GRPO: Shao et al. 2024, section 4.1). The deviation is that of a sample (÷ G − 1); needs G ≥ 2. Answers with equal
    returns get 0.
    """
    mean_P1, std_P1 = returns_PG.mean(1, keepdim=True), returns_PG.std(1, keepdim=True)
    return (returns_PG - mean_P1) / (std_P1 + eps)
