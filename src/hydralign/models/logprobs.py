"""Log-probabilities of response tokens from final states, in chunks.

Only states that predict a response token enter, so logits of prompt positions never exist; of the rest, no more
than a chunk of logits lives at once. A frozen head passes gradients on that are formed with each chunk, so that
nothing is stored or computed again; a trained one recomputes its chunks in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hydralign.models.heads import OutputHead

STORED_ELEMENTS = 1 << 24
"""Logits of a trained head that are kept for the backward pass, at most: 64 MiB in fp32."""
CHUNK_ELEMENTS = 1 << 23
"""Logits of a frozen head at once: 32 MiB in fp32, above which a C library takes fresh pages for every tensor."""
BLOCK_ELEMENTS = 1 << 20
"""Logits whose softmax is taken at once: 4 MiB, so that the steps of it find them in a cache."""


def shape_logits(logits_NV: Tensor, *, temperature: float, stop_ids: Sequence[int], blocked_N: Tensor) -> Tensor:
    """The logits whose softmax is the sampling distribution: divided by temperature, stop tokens masked.

    `blocked_N` is True where the row is still below its minimum length. Sampler, policy and reference all call
    this one function. Masked logits get the lowest finite number, so that entropies stay finite.
    """
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    for stop in stop_ids:
        column_N = logits_NV[:, stop].masked_fill(blocked_N, torch.finfo(logits_NV.dtype).min)
        logits_NV = logits_NV.index_copy(1, torch.tensor([stop], device=logits_NV.device), column_N[:, None])
    return logits_NV


def token_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    blocked_N: Tensor,
    *,
    head: OutputHead,
    temperature: float,
    stop_ids: Sequence[int],
    entropy: bool = True,
    entropy_gradient: bool = False,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats, fp32, for states that predict `targets_N`.

    With a frozen head nothing of a chunk is kept but its gradient, a vector per token. With a trained one the logits
    of a single chunk are kept for the backward pass; those of several are computed again there. Entropies are zero
    unless asked for, and carry no gradient unless `entropy_gradient`.
    """
    if not len(targets_N):
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        return empty, empty
    most = max(1, (chunk_elements or (CHUNK_ELEMENTS if head.frozen else STORED_ELEMENTS)) // head.vocabulary)
    chunks = -(-len(targets_N) // most)
    rows = -(-len(targets_N) // chunks)
    settings: dict[str, Any] = {"head": head, "temperature": temperature, "stop_ids": stop_ids, "entropy": entropy}
    read: Callable[..., tuple[Tensor, Tensor]] = partial(_stored, **settings, entropy_gradient=entropy_gradient)
    if head.frozen:
        read = partial(_formed, **settings, entropy_gradient=entropy_gradient)
    elif chunks > 1 and torch.is_grad_enabled():
        read = partial(checkpoint, read, use_reentrant=False)
    parts = [read(*chunk) for chunk in zip(*(x.split(rows) for x in (hidden_ND, targets_N, blocked_N)), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _stored(
    hidden_ND: Tensor,
    targets_N: Tensor,
    blocked_N: Tensor,
    *,
    head: OutputHead,
    temperature: float,
    stop_ids: Sequence[int],
    entropy: bool,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """One chunk, with the graph that autograd makes of it."""
    logits_NV = shape_logits(head(hidden_ND), temperature=temperature, stop_ids=stop_ids, blocked_N=blocked_N)
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    chosen_N = logprobs_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    if not entropy:
        return chosen_N, torch.zeros_like(chosen_N)
    kept_NV = logprobs_NV if entropy_gradient else logprobs_NV.detach()
    return chosen_N, -torch.linalg.vecdot(kept_NV.exp(), kept_NV)


def _formed(
    hidden_ND: Tensor,
    targets_N: Tensor,
    blocked_N: Tensor,
    *,
    head: OutputHead,
    temperature: float,
    stop_ids: Sequence[int],
    entropy: bool,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """One chunk through a frozen head, with its gradients formed on the spot.

    Each result of a token depends on its own state alone, so its gradient is one vector of width D: for the
    log-probability (W_y - pᵀW)/τ, for the entropy -(p·(log p + H))ᵀW/τ. Logits are overwritten by probabilities.
    """
    learns = torch.is_grad_enabled() and hidden_ND.requires_grad
    with torch.no_grad():
        logits_NV = head(hidden_ND)
        slope_NV, slope_N1 = head.slope(logits_NV), head.slope(logits_NV.gather(1, targets_N[:, None]))
        spread_NV = torch.empty_like(logits_NV) if learns and entropy_gradient else None
        chosen_N, entropy_N = logits_NV.new_empty(len(targets_N)), logits_NV.new_zeros(len(targets_N))
        block = max(1, BLOCK_ELEMENTS // head.vocabulary)
        for few in (slice(start, start + block) for start in range(0, len(targets_N), block)):
            shaped_NV = shape_logits(
                logits_NV[few], temperature=temperature, stop_ids=stop_ids, blocked_N=blocked_N[few]
            )
            logprobs_NV = torch.log_softmax(shaped_NV, dim=-1)
            chosen_N[few] = logprobs_NV.gather(-1, targets_N[few, None]).squeeze(-1)
            if learns or entropy:
                p_NV = torch.exp(logprobs_NV, out=logits_NV[few])
            if entropy:
                entropy_N[few] = -torch.linalg.vecdot(p_NV, logprobs_NV)
            if spread_NV is not None:
                spread_NV[few] = -p_NV * (logprobs_NV + entropy_N[few, None])
        if not learns:
            return chosen_N, entropy_N
        with torch.autocast(hidden_ND.device.type, enabled=False):
            pulled_ND = head.pull_chosen(targets_N, slope_N1) - head.pull(logits_NV, slope_NV)
            entropy_ND = None if spread_NV is None else head.pull(spread_NV, slope_NV) / temperature
    chosen_N = _Formed.apply(hidden_ND, chosen_N, pulled_ND / temperature)
    return chosen_N, entropy_N if entropy_ND is None else _Formed.apply(hidden_ND, entropy_N, entropy_ND)


class _Formed(torch.autograd.Function):
    """A number per token whose gradient with respect to the token's state is known already."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, result_N: Tensor, gradient_ND: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_ND.to(hidden_ND.dtype))
        return result_N.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return upstream[0][:, None].to(gradient_ND.dtype) * gradient_ND, None, None
