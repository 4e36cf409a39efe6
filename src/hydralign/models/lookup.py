"""Token embeddings whose gradient is added to what the output head has left.

Where both are one matrix, autograd makes a dense gradient of each and adds them in a third: for a vocabulary of
50,000 and two hundred tokens a step, a third of the time that training a small model whole takes. Here the rows that
were looked up are added into the head's gradient, which is there by then.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def looked_up(lookup: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Input states_BTD, fp32. Their gradient goes into the `.grad` of the embedding's weight when `backward` runs.

    Look-ups that do more than read rows (scaling, another norm) are called as they are.
    """
    if type(lookup) is not nn.Embedding or not (torch.is_grad_enabled() and lookup.weight.requires_grad):
        return lookup(tokens_BT).float()
    weight = lookup.weight
    states_BTD = weight.detach()[tokens_BT].float().requires_grad_()

    def add(gradient_BTD: Tensor) -> None:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        rows_ND = gradient_BTD.flatten(0, 1).to(weight.dtype)
        weight.grad.index_add_(0, tokens_BT.flatten(), rows_ND)

    states_BTD.register_hook(add)
    return states_BTD
