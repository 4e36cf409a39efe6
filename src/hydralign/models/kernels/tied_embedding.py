"""Token embeddings whose gradient is added to what a tied output head has left.

Where both are one matrix, autograd makes a dense gradient of each and adds them in a third: for a vocabulary of
50,000 and two hundred tokens a step, a third of the time that training a small model whole takes. Here the rows that
were looked up are added into the head's gradient, which is there by then.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from hydralign.errors import GradientError


def look_up(lookup: nn.Module, tokens_BT: Tensor, *, head: nn.Module) -> Tensor:
    """Input states_BTD, fp32.

    Of a trained embedding that is the head's matrix too, their gradient goes into the weight's `.grad` when a full
    `backward()` comes by. Hooks on the weight, and `backward(inputs=...)`, see the head's part alone; so would
    `torch.autograd.grad`, which a GradientError refuses as long as the states' graph lives. On a GPU the order of the
    additions is not fixed. Every other look-up is called as it is.
    """
    tied = type(lookup) is nn.Embedding and lookup.weight is head.weight
    if not (tied and torch.is_grad_enabled() and lookup.weight.requires_grad):
        return lookup(tokens_BT).float()
    states_BTD = _Rows.apply(torch.zeros((), requires_grad=True), lookup, tokens_BT)
    weight: Any = lookup.weight
    hook = weight.register_hook(partial(_refuse_parts, get_gradient_edge(weight).node))
    weakref.finalize(states_BTD.grad_fn, hook.remove)
    return states_BTD


def _refuse_parts(accumulates: Any, _: Tensor) -> None:
    """Raise GradientError when the weight's gradient is asked for by itself, not to be put into its `.grad`."""
    try:
        torch._C._will_engine_execute_node(accumulates)
    except RuntimeError as error:  # what torch says of a leaf whose gradient `torch.autograd.grad` asks for
        raise GradientError(
            "torch.autograd.grad was asked for the gradient of a token embedding that is tied to the output head: it "
            "would see the head's part alone. Call backward() and read the weight's .grad."
        ) from error


class _Rows(torch.autograd.Function):
    """Rows of a matrix that autograd does not see: were it an input, its two gradients would meet before `.grad`.

    In its place stands a number, so that what is made of the rows has a gradient at all.
    """

    @staticmethod
    def forward(ctx: Any, _: Tensor, lookup: nn.Embedding, tokens_BT: Tensor) -> Tensor:
        ctx.weight, ctx.tokens_BT = lookup.weight, tokens_BT
        return lookup.weight.detach()[tokens_BT].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, None, None]:
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        rows_ND = upstream[0].flatten(0, 1).to(weight.dtype)
        weight.grad.index_add_(0, ctx.tokens_BT.flatten(), rows_ND)
        return None, None, None
