"""Two checks before the first update of every run; each names the probable cause when it fails.

Same path: policy and reference must give the same log-probabilities for the same stored rows, so that KL is 0 and every
ratio is 1. Equal weights at different addresses may round differently (MKL on some CPUs, most GPUs), so rounding is
allowed, in proportion to the precision and to the size of the logits; another adapter, dropout or other weights lie
far above it. Sampler drift: decoding with a cache and a full forward pass must agree, or PPO would optimise another
policy than the one that was sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.errors import StartCheckError
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.rollout import keep_trunk_count, map_rows, require_finite_numbers
from hydralign.types import Experience, TokenBatch

DRIFT_LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (3e-2, 0.5)}
"""Largest allowed (mean, maximum) of |log-probability by decoding − by forward pass|, in nats."""

ROUNDING_LIMITS = {"fp32": (2e-6, 1e-5), "bf16": (2e-3, 2e-2)}
"""Largest (mean, maximum) gap between two passes over the same rows that counts as rounding, in units of the largest
logit ÷ temperature. Chosen from measurements: docs/log.md has both sides.
"""

PROBED_ROWS = 4
"""Rows whose next-token logits give the size of the numbers that are rounded."""


def check_start(
    policy: Policy, experience: Experience, *, fresh: bool, micro_batch_size: int | MicroBatcher = 16
) -> dict[str, float]:
    """Run both checks on an experience that was collected before any update; returns what was measured.

    `fresh` is False for a resumed run, whose policy has left its reference already. A reference that was handed in may
    be any model, so that the gap to it is measured and not judged. The experience must have been
    collected with the same `micro_batch_size`. Raises StartCheckError, or NonFiniteError for NaN in the forward pass.
    """
    rows, fits = experience.rollout.rows, MicroBatcher.of(micro_batch_size)
    mask_BR, collected_with = rows.mask_BR, fits.rows

    def read(few: TokenBatch) -> tuple[Tensor | None, ...]:
        first_BR, again_BR = (policy.evaluate(few).logprobs_BR for _ in range(2))
        # Kernels round by the shape of a batch: bits are compared between micro-batches of one size only.
        return first_BR, again_BR, None if fits.rows == collected_with else policy.reference_logprobs(few)

    with torch.no_grad():
        first_BR, again_BR, reference_BR = map_rows(read, rows, fits)
    reference_BR = experience.ref_logprobs_BR if reference_BR is None else reference_BR
    require_finite_numbers({"policy/logprobs": first_BR})
    mean_allowed, max_allowed = (limit * _logit_size(policy, experience) for limit in ROUNDING_LIMITS[policy.precision])
    allowed = f"allowed as rounding in {policy.precision}: {mean_allowed:.2g} on average and {max_allowed:.2g} at most"
    repeat_mean, repeat_max = _gap(first_BR, again_BR, mask_BR)
    if not (repeat_mean <= mean_allowed and repeat_max <= max_allowed):
        raise StartCheckError(
            f"The policy gives two answers for the same rows (they differ by up to {repeat_max:.2g} nats, {allowed}): "
            "the probability ratio would not be 1 before any update. Probable cause: dropout or another random layer "
            "is on. Load the model with its dropout at 0."
        )
    ref_mean, ref_max = _gap(first_BR, reference_BR, mask_BR)
    starts_there = fresh and policy.reference is policy.form.reference
    if starts_there and not (ref_mean <= mean_allowed and ref_max <= max_allowed):
        raise StartCheckError(
            f"Policy and reference differ by up to {ref_max:.2g} nats per token before the first update ({allowed}): "
            "KL would not start at 0. Probable cause: weights or adapters were changed after the policy was made, so "
            "that the reference is another model. Make the policy from the weights that it starts with."
        )
    drift_N = (first_BR - experience.rollout.old_logprobs_BR)[mask_BR].abs()
    mean, largest = float(drift_N.mean()), float(drift_N.max())
    mean_limit, max_limit = DRIFT_LIMITS[policy.precision]
    if not (mean <= mean_limit and largest <= max_limit):
        raise StartCheckError(
            f"Sampler and forward pass differ by {mean:.2g} on average and {largest:.2g} at most (allowed in "
            f"{policy.precision}: {mean_limit} and {max_limit}): samples would be off-policy. Probable cause: "
            "positions or padding are treated differently when decoding with a cache, or the attention kernels "
            'are. Load the model with attn_implementation="sdpa", or use another architecture.'
        )
    measured = {
        "sampler/logprob_drift": mean,
        "sampler/logprob_drift_max": largest,
        "start/repeat_gap": repeat_max,
    }
    if fresh:
        measured |= {"start/ref_gap": ref_max, "start/ref_gap_is_zero": float(ref_max == 0)}
    return measured


def _gap(a_BR: Tensor, b_BR: Tensor, mask_BR: Tensor) -> tuple[float, float]:
    """(mean, largest) distance over real response tokens, in nats; 0 when there are none."""
    gap_N = (a_BR - b_BR)[mask_BR].abs().double()
    return (float(gap_N.mean()), float(gap_N.max())) if gap_N.numel() else (0.0, 0.0)


@torch.no_grad()
def _logit_size(policy: Policy, experience: Experience) -> float:
    """The largest |logit| ÷ temperature after a few prompts, or |log-probability| of any token, and at least 1.

    Log-probabilities alone would hide it: a sure prediction is the small difference of two large numbers.
    """
    rollout = experience.rollout
    prompt_ids = [prompt.token_ids for prompt in rollout.prompts[:PROBED_ROWS]]
    restore = keep_trunk_count(policy)
    # One row at a time, which fits wherever anything does.
    logits = [policy.start([ids], 1).predict()[0] for ids in prompt_ids]
    # Minus infinity stands for tokens that cannot be said: it is not rounded.
    largest = max(float(logits_1V[logits_1V.isfinite()].abs().max()) for logits_1V in logits)
    restore()
    largest /= rollout.rows.temperature
    return max(1.0, largest, float(rollout.old_logprobs_BR.abs().max()) if rollout.old_logprobs_BR.numel() else 0.0)
