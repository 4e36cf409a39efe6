"""PPO's clipped value error, with the factor ½ inside.

It stands in no equation of the PPO paper but in OpenAI's code for it; followed here as in Huang et al. 2024.
Does not normalise returns and does not apply the value coefficient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.algorithms.masked import Average, aggregate, zero_masked


def clipped_value_loss(
    values_BR: Tensor,
    old_values_BR: Tensor,
    returns_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float | None,
    average: Average = "token",
    count: float | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """½·max((V − R)², (clip(V, V_old ± clip) − R)²), averaged as `aggregate` says over `count` tokens or rows.

    The maximum is pessimistic: a value that moved further than `clip` gets no credit for having come closer to
    the return. `clip=None` is the plain ½·(V − R)².

    Stats are detached sums over the unmasked tokens; add them up, then divide once by the number of tokens:
    `value`, `value_squared_error` (unclipped, without the ½), `value_clipped` tokens where the clipped term rules.
    """
    values_BR, returns_BR = zero_masked(values_BR, mask_BR), zero_masked(returns_BR, mask_BR)
    error_BR = (values_BR - returns_BR).square()
    worst_BR = error_BR
    if clip is not None:
        old_values_BR = zero_masked(old_values_BR, mask_BR)
        near_BR = torch.clamp(values_BR, old_values_BR - clip, old_values_BR + clip)
        worst_BR = torch.maximum(error_BR, (near_BR - returns_BR).square())
    loss = 0.5 * aggregate(worst_BR, mask_BR, average=average, count=count)
    stats = {
        "value": values_BR.sum(),
        "value_squared_error": error_BR.sum(),
        "value_clipped": (worst_BR > error_BR).to(error_BR.dtype).sum(),
    }
    return loss, {name: total.detach() for name, total in stats.items()}
