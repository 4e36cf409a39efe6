"""Generalised advantage estimation (Schulman et al. 2016, equation 16) over the tokens of answers.

Does not whiten and does not detach: pass rewards and values that carry no gradient. Departs from the general form
in one convention: nothing is bootstrapped after the last real token, of truncated answers as of finished ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.algorithms.masked import kept


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """`(advantages_BR, returns_BR)`, in fp32 (fp64 for fp64 input), 0 outside the mask.

    δₜ = rₜ + γ·Vₜ₊₁ − Vₜ;  Aₜ = δₜ + γλ·Aₜ₊₁;  returns = A + V, with V = A = 0 after the last real token.
    Vₜ is the value before token t. λ = 1 is Monte Carlo return minus value, λ = 0 the one-step error.
    Masks are prefixes of the row (right padding). Masked columns are stepped over, not treated as states of value 0.
    """
    dtype = torch.promote_types(torch.promote_types(rewards_BR.dtype, values_BR.dtype), torch.float32)
    rewards_BR, values_BR = kept(rewards_BR.to(dtype), mask_BR), kept(values_BR.to(dtype), mask_BR)
    advantages_BR = torch.zeros_like(rewards_BR)
    next_value_B = next_advantage_B = rewards_BR.new_zeros(rewards_BR.shape[0])
    for t in reversed(range(rewards_BR.shape[1])):
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BR[:, t] = kept(advantage_B, mask_BR[:, t])
        next_advantage_B = torch.where(mask_BR[:, t], advantage_B, next_advantage_B)
        next_value_B = torch.where(mask_BR[:, t], values_BR[:, t], next_value_B)
    return advantages_BR, advantages_BR + values_BR
