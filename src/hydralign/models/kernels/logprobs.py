"""Log-probabilities of response tokens from final states, in chunks.

Only states that predict a response token enter, so logits of prompt positions never exist; of the rest, no more
than a chunk of logits lives at once. A frozen head passes gradients on that are formed with each chunk: one vector
per state is kept, and nothing is computed again. Of a trained one the probabilities are kept, or computed again
chunk by chunk in the backward pass where there are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hydralign.models.heads.token import TokenHead

STORED_ELEMENTS = 1 << 24
"""Probabilities of a trained head that are kept for the backward pass, at most: 64 MiB in fp32."""
PASSING_ROWS = 512
"""States that go through a frozen head at once."""
BLOCK_ELEMENTS = {"cpu": 1 << 19, "other": 1 << 24}
"""Logits that a softmax reads at once: on a CPU so few that its steps find them in a cache."""

IMPOSSIBLE = -1e4
"""Lower than any logit below the largest whose exponential is not 0: where a model rules tokens out, 0 · (-inf) is no
number, and 0 · this is."""


def apply_temperature_and_min_length(
    logits_NV: Tensor, *, temperature: float, stop_ids: Sequence[int], blocked_N: Tensor
) -> Tensor:
    """The logits whose softmax is the sampling distribution: divided by temperature, stop tokens masked.

    `blocked_N` is True where the row is still below its minimum length. Sampler, policy and reference all call
    this one function. Masked logits get the lowest finite number, so that entropies stay finite.
    """
    if temperature == 1.0 and not stop_ids:
        return logits_NV
    shaped_NV = logits_NV / temperature
    for stop in stop_ids:
        shaped_NV[:, stop].masked_fill_(blocked_N, torch.finfo(logits_NV.dtype).min)
    return shaped_NV


def token_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    blocked_N: Tensor,
    *,
    head: TokenHead,
    temperature: float,
    stop_ids: Sequence[int],
    entropy: bool = True,
    entropy_gradient: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in nats, fp32, for states that predict `targets_N`.

    Nothing of a frozen head's logits is kept but their gradient, a vector per token. With a trained head the
    probabilities of a single chunk are kept for the backward pass; those of several are computed again there.
    Entropies are zero unless asked for, and carry no gradient unless `entropy_gradient`.
    """
    if not len(targets_N):
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        return empty, empty
    passing = head.frozen or not torch.is_grad_enabled()
    most = chunk_rows or (PASSING_ROWS if passing else max(1, STORED_ELEMENTS // head.vocabulary))
    chunks = -(-len(targets_N) // most)
    how = _Reading(head, temperature, stop_ids, entropy, entropy_gradient)
    read: Callable[..., tuple[Tensor, Tensor]] = partial(_passed if passing else _stored, how)
    if chunks > 1 and not passing:
        read = partial(checkpoint, read, use_reentrant=False)
    pieces = (x.split(-(-len(targets_N) // chunks)) for x in (hidden_ND, targets_N, blocked_N))
    parts = [read(*piece) for piece in zip(*pieces, strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def plain_token_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    blocked_N: Tensor,
    *,
    head: TokenHead,
    temperature: float,
    stop_ids: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """What `token_logprobs` computes, by its definition: whole rows of logits, and gradients by autograd."""
    logprobs_NV = apply_temperature_and_min_length(
        head(hidden_ND), temperature=temperature, stop_ids=stop_ids, blocked_N=blocked_N
    ).log_softmax(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV.clamp(min=IMPOSSIBLE)).sum(-1)
    return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


class _Reading(NamedTuple):
    """What a chunk of states is read with; the fields are arguments of `token_logprobs`."""

    head: TokenHead
    temperature: float
    stop_ids: Sequence[int]
    entropy: bool
    entropy_gradient: bool


def _stored(how: _Reading, hidden_ND: Tensor, targets_N: Tensor, blocked_N: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk through a head that autograd differentiates."""
    chosen_N, entropy_N = _Read.apply(how.head(hidden_ND), targets_N, blocked_N, how.temperature, how.stop_ids)
    if not how.entropy:
        return chosen_N, torch.zeros_like(chosen_N)
    return chosen_N, entropy_N if how.entropy_gradient else entropy_N.detach()


class _Read(torch.autograd.Function):
    """Log-probability of a target and entropy, for each row of a head's logits. These turn into probabilities in place,
    and in the backward pass into their own gradient, so a second one through the same graph is an error.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, blocked_N: Tensor, temperature: float, stop_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        chosen_N, entropy_N = (logits_NV.new_empty(len(targets_N)) for _ in range(2))
        for row_n in _few_rows(logits_NV):
            z_nV = apply_temperature_and_min_length(
                logits_NV[row_n], temperature=temperature, stop_ids=stop_ids, blocked_N=blocked_N[row_n]
            )
            z_nV = z_nV - z_nV.amax(-1, keepdim=True)
            e_nV = z_nV.exp()
            mass_n1 = e_nV.sum(-1, keepdim=True)
            log_mass_n = mass_n1.log().squeeze(1)
            chosen_N[row_n] = z_nV.gather(1, targets_N[row_n, None]).squeeze(1) - log_mass_n
            z_nV.clamp_(min=IMPOSSIBLE)
            entropy_N[row_n] = log_mass_n - _dot(e_nV, z_nV) / mass_n1.squeeze(1)
            logits_NV[row_n] = e_nV / mass_n1
        ctx.save_for_backward(logits_NV, targets_N, blocked_N, entropy_N)
        ctx.temperature, ctx.stop_ids = temperature, stop_ids
        ctx.set_materialize_grads(False)
        return chosen_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """∂ log p(y) = 1[y] - p, and ∂H = -p·(log p + H), each times what comes from above, over the temperature."""
        p_NV, targets_N, blocked_N, entropy_N = ctx.saved_tensors
        chosen_N, spread_N = (torch.zeros_like(entropy_N) if up is None else up / ctx.temperature for up in upstream)
        for row_n in _few_rows(p_NV):
            p_nV = p_NV[row_n]
            bent_nV = None if upstream[1] is None else torch.xlogy(p_nV, p_nV) * spread_N[row_n, None]
            p_nV.mul_(-(chosen_N + spread_N * entropy_N)[row_n, None])
            if bent_nV is not None:
                p_nV.sub_(bent_nV)
            p_nV.scatter_add_(1, targets_N[row_n, None], chosen_N[row_n, None])
        for stop in ctx.stop_ids:
            p_NV[:, stop].masked_fill_(blocked_N, 0.0)
        return p_NV, None, None, None, None


def _few_rows(matrix_NV: Tensor) -> list[slice]:
    """The rows of a matrix in pieces of few elements."""
    elements = BLOCK_ELEMENTS["cpu" if matrix_NV.device.type == "cpu" else "other"]
    count = max(1, elements // matrix_NV.shape[1])
    return [slice(start, start + count) for start in range(0, len(matrix_NV), count)]


def _passed(how: _Reading, hidden_ND: Tensor, targets_N: Tensor, blocked_N: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk through a head that only passes gradients on, with these formed on the spot.

    Each result of a token depends on its own state alone, so its gradient is one vector of width D: with e the
    exponentials and s their sum, (W_y - eᵀW/s)/τ for the log-probability, (log p + H averaged likewise) for the
    entropy. The vocabulary is read in blocks, each block's weights once for both products, under a running maximum
    as in flash attention (Dao et al. 2022), so that many states at once need no whole rows of logits.
    """
    head, entropy_gradient = how.head, how.entropy_gradient
    learns = torch.is_grad_enabled() and hidden_ND.requires_grad
    with torch.no_grad():
        sums = _Softmax(hidden_ND, states=learns, spread=learns and entropy_gradient)
        target_N, slope_N = hidden_ND.new_zeros(len(targets_N), dtype=torch.float32), torch.ones(())
        elements = BLOCK_ELEMENTS["cpu" if hidden_ND.device.type == "cpu" else "other"]
        for tokens in head.blocks(max(1024, elements // len(targets_N))):
            raw_NB = head.block(hidden_ND, tokens)
            stops = [stop - tokens.start for stop in how.stop_ids if stop in tokens]
            logits_NB = apply_temperature_and_min_length(
                raw_NB, temperature=how.temperature, stop_ids=stops, blocked_N=blocked_N
            )
            inside_N = (targets_N >= tokens.start) & (targets_N < tokens.stop)
            at_N1 = (targets_N - tokens.start).clamp(0, len(tokens) - 1)[:, None]
            target_N = torch.where(inside_N, logits_NB.gather(1, at_N1).squeeze(1), target_N)
            slope = head.slope(raw_NB) if learns else 1.0
            if isinstance(slope, Tensor):
                slope_N = torch.where(inside_N, slope.gather(1, at_N1).squeeze(1), slope_N)
            sums.add(logits_NB, head.weights(tokens) if learns else None, slope)
        chosen_N, entropy_N = (
            target_N - sums.log_mass_N,
            sums.entropy_N if how.entropy else torch.zeros_like(target_N),
        )
        if not learns:
            return chosen_N, entropy_N
        scale = slope_N[:, None] if slope_N.dim() else head.slope(target_N)
        chosen_ND = (head.weights(targets_N).float() * scale - sums.mean_ND) / how.temperature
        entropy_ND = sums.entropy_ND / how.temperature if entropy_gradient else None
    chosen_N = _Formed.apply(hidden_ND, chosen_N, chosen_ND)
    return chosen_N, entropy_N if entropy_ND is None else _Formed.apply(hidden_ND, entropy_N, entropy_ND)


class _Softmax:
    """Sums over the tokens seen so far, relative to the largest logit so far: Σe, Σe·z, and of weights Σe·W, Σe·z·W."""

    def __init__(self, hidden_ND: Tensor, *, states: bool, spread: bool) -> None:
        zero_N1 = hidden_ND.new_zeros(len(hidden_ND), 1, dtype=torch.float32)
        self.top_N1 = torch.full_like(zero_N1, torch.finfo(torch.float32).min)
        self.mass_N1, self.height_N1 = zero_N1, zero_N1
        self.states_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if states else None
        self.spread_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if spread else None

    def add(self, logits_NB: Tensor, weights_BD: Tensor | None, slope: Tensor | float) -> None:
        """Add a block of tokens with the rows of the head's matrix that made their logits, which are overwritten."""
        top_N1 = torch.maximum(self.top_N1, logits_NB.amax(-1, keepdim=True))
        fall_N1 = self.top_N1 - top_N1
        shrink_N1 = fall_N1.exp()
        z_NB = logits_NB.sub_(top_N1).clamp_(min=IMPOSSIBLE)
        e_NB = z_NB.exp()
        height_N1 = _dot(e_NB, z_NB)[:, None]
        self.height_N1 = shrink_N1 * (self.height_N1 + fall_N1 * self.mass_N1) + height_N1
        self.mass_N1 = shrink_N1 * self.mass_N1 + e_NB.sum(-1, keepdim=True)
        self.top_N1 = top_N1
        if self.states_ND is None or weights_BD is None:
            return
        if self.spread_ND is not None:
            self.spread_ND = shrink_N1 * (self.spread_ND + fall_N1 * self.states_ND)
            self.spread_ND += _product(z_NB.mul_(e_NB), slope, weights_BD)
        self.states_ND = shrink_N1 * self.states_ND + _product(e_NB, slope, weights_BD)

    @property
    def log_mass_N(self) -> Tensor:
        """The logarithm of Σ exp(logit)."""
        return (self.top_N1 + self.mass_N1.log()).squeeze(1)

    @property
    def entropy_N(self) -> Tensor:
        """-Σ p log p, in nats."""
        return (self.mass_N1.log() - self.height_N1 / self.mass_N1).squeeze(1)

    @property
    def mean_ND(self) -> Tensor:
        """Σ p·W."""
        assert self.states_ND is not None
        return self.states_ND / self.mass_N1

    @property
    def entropy_ND(self) -> Tensor:
        """Gradient of the entropy with respect to the states: -Σ p·(log p + H)·W."""
        assert self.spread_ND is not None
        return (self.height_N1 / self.mass_N1) * self.mean_ND - self.spread_ND / self.mass_N1


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Row by row, in fp32 also under autocast, which would round to bf16 here."""
    with torch.autocast(a_NV.device.type, enabled=False):
        return torch.linalg.vecdot(a_NV, b_NV)


def _product(e_NB: Tensor, slope: Tensor | float, weights_BD: Tensor) -> Tensor:
    """Σ e·slope·W in fp32, multiplied in the precision of the weights."""
    weighed_NB = e_NB if isinstance(slope, float) and slope == 1.0 else e_NB * slope
    with torch.autocast(e_NB.device.type, enabled=False):
        return (weighed_NB.to(weights_BD.dtype) @ weights_BD).float()


class _Formed(torch.autograd.Function):
    """A number per token whose gradient with respect to the token's state is known already."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, result_N: Tensor, gradient_ND: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_ND.to(hidden_ND.dtype))
        return result_N.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return upstream[0][:, None].to(gradient_ND.dtype) * gradient_ND, None, None
