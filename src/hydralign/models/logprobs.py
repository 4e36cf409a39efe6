"""Log-probabilities of response tokens from final states, in chunks.

Only states that predict a response token enter, so logits of prompt positions never exist; of the rest, no more
than `CHUNK_ELEMENTS` logits live at once: a chunk is recomputed in the backward pass instead of stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24
"""Logits per chunk: 64 MiB in fp32."""


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
    head: Callable[[Tensor], Tensor],
    vocabulary: int,
    temperature: float,
    stop_ids: Sequence[int],
    entropy: bool = True,
    entropy_gradient: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats, fp32, for states that predict `targets_N`.

    With one chunk its logits are kept for the backward pass; with several each is recomputed there. Entropies are
    zero unless asked for, and carry no gradient unless `entropy_gradient`.
    """

    def read(hidden: Tensor, targets: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
        logits = shape_logits(head(hidden), temperature=temperature, stop_ids=stop_ids, blocked_N=blocked)
        logprobs = torch.log_softmax(logits, dim=-1)
        chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
        if not entropy:
            return chosen, torch.zeros_like(chosen)
        kept = logprobs if entropy_gradient else logprobs.detach()
        return chosen, -(kept.exp() * kept).sum(-1)

    rows = max(1, chunk_elements // vocabulary)
    starts = range(0, len(targets_N), rows)
    store = len(starts) <= 1 or not torch.is_grad_enabled()
    parts = []
    for start in starts:
        chunk = (hidden_ND[start : start + rows], targets_N[start : start + rows], blocked_N[start : start + rows])
        parts.append(read(*chunk) if store else checkpoint(read, *chunk, use_reentrant=False))
    if not parts:
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        return empty, empty
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
