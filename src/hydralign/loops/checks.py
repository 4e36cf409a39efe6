"""Two checks before the first update of every run; each names the probable cause when it fails.

Same path: policy and reference must give bit-equal log-probabilities for the same stored rows, so that KL is 0 and
every ratio is 1. Sampler drift: decoding with a cache and a full forward pass must agree, or PPO would optimise
another policy than the one that was sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.errors import StartCheckError
from hydralign.memory import MicroRows
from hydralign.models.policy import Policy
from hydralign.rollout import evaluate_rows, reference_rows, require_finite
from hydralign.types import Experience

DRIFT_LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (3e-2, 0.5)}
"""Largest allowed (mean, maximum) of |log-probability by decoding − by forward pass|, in nats."""


def check_start(
    policy: Policy, experience: Experience, *, fresh: bool, micro_rows: int | MicroRows = 16
) -> dict[str, float]:
    """Run both checks on an experience that was collected before any update; returns what was measured.

    `fresh` is False for a resumed run, whose policy has left its reference already. The experience must have been
    collected with the same `micro_rows`. Raises StartCheckError, or NonFiniteError for NaN in the forward pass.
    """
    rows, fits = experience.rollout.rows, MicroRows.of(micro_rows)
    mask_BR, collected_with = rows.mask_BR, fits.rows

    def read(at_once: int) -> tuple[Tensor, Tensor, Tensor]:
        first_BR, again_BR = (evaluate_rows(policy, rows, at_once).logprobs_BR for _ in range(2))
        # Kernels round by the shape of a batch: bits are compared between micro-batches of one size only.
        stored = at_once == collected_with
        return first_BR, again_BR, experience.ref_logprobs_BR if stored else reference_rows(policy, rows, at_once)

    first_BR, again_BR, reference_BR = fits.run(read, total=len(rows))
    require_finite({"policy/logprobs": first_BR})
    if not torch.equal(first_BR, again_BR):
        raise StartCheckError(
            f"The policy gives two answers for the same rows (they differ by {_gap(first_BR, again_BR):.2g}): the "
            "probability ratio would not be 1 before any update. Probable cause: dropout or another random layer is "
            "on. Load the model with its dropout at 0."
        )
    if fresh and not torch.equal(first_BR, reference_BR):
        raise StartCheckError(
            f"Policy and reference differ by up to {_gap(first_BR, reference_BR):.2g} nats per token before the first "
            "update: KL would not start at 0. Probable cause: weights or adapters were changed after the policy was "
            "made, so that the reference is another model. Make the policy from the weights that it starts with."
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
    return {"sampler/logprob_drift": mean, "sampler/logprob_drift_max": largest}


def _gap(a_BR: torch.Tensor, b_BR: torch.Tensor) -> float:
    return float((a_BR - b_BR).abs().max())
