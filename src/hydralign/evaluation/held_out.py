"""Before and after on held-out prompts: the same prompts, the same random numbers, paired differences.

Answers are sampled with the training run's own settings but from a stream of their own, so that evaluating changes
no training token, and both times the same uniform numbers are used.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydralign.algorithms.kl import gap_name, k1
from hydralign.data import fingerprint
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.files import write_text
from hydralign.generation.sampler import Sampler, sample
from hydralign.micro_batches import MicroBatcher
from hydralign.models.policy import Policy
from hydralign.progress import progress
from hydralign.rewards.combine import RewardTerm, require_applied
from hydralign.rollout import collect
from hydralign.types import Experience, Prompt, SamplingParams

EVALUATION = 0xFFFF_FFFF
"""Iteration number that keys the generator of evaluations; no training iteration reaches it."""


@dataclass(frozen=True)
class Answers:
    """Held-out answers, in numbers per prompt (all processes' prompts, in order)."""

    metrics: dict[str, list[float]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    rows: str = ""
    """Fingerprint of the prompts; empty where it is not known."""

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        metrics = {name: [None if math.isnan(x) else x for x in values] for name, values in self.metrics.items()}
        write_text(path, json.dumps({"rows": self.rows, "metrics": metrics, "samples": self.samples}) + "\n")

    @classmethod
    def load(cls, path: Path) -> Answers:
        """What `save` wrote. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        metrics = {
            name: [math.nan if x is None else float(x) for x in values] for name, values in stored["metrics"].items()
        }
        samples = [dict(row) for row in stored["samples"]]
        if len({len(values) for values in metrics.values()}) != 1 or not all("response" in row for row in samples):
            raise ValueError("not one number per answer")
        return cls(metrics, samples, str(stored.get("rows", "")))


def answer_held_out(
    policy: Policy,
    prompts: Sequence[Prompt],
    terms: Sequence[RewardTerm],
    params: SamplingParams,
    *,
    micro_batch_size: int = 16,
    samples: int | None = 8,
    label: str = "held out",
    processes: Distributed = SINGLE_PROCESS,
    sampler: Sampler = sample,
) -> Answers:
    """Answer every prompt once. Metrics: score, each reward if several, kl (k1 sum, nats), tokens, finished (0, 1).
    Under top-k or top-p there is no kl but a logprob_gap, which is the same sum over answers that are no samples of the
    whole distribution.

    The first `samples` answers are kept as text; None keeps all of them.
    """
    sizes = {"micro_batch_size": micro_batch_size, "decode_batch_size": params.decode_batch_size}
    fits: dict[str, Any] = {name: MicroBatcher(rows, name=name, speaks=processes.main) for name, rows in sizes.items()}
    share = processes.share(len(prompts))
    own = list(prompts[share])

    def answer_share() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        parts: dict[str, list[Tensor]] = {}
        shown: list[dict[str, Any]] = []
        with progress(label, len(own), stream=None if processes.main else io.StringIO()) as bar:
            for start in range(0, len(own), params.decode_batch_size):
                few = own[start : start + params.decode_batch_size]
                keyed = params.at(EVALUATION, first_row=share.start + start)
                experience = collect(policy, few, terms, keyed, **fits, sampler=sampler)
                measured = _measured(experience)
                for name, values in measured.items():
                    parts.setdefault(name, []).append(values.double())
                answered = zip(few, experience.rollout.completions, measured["score"].tolist(), strict=True)
                shown += [{"query": prompt.text, "response": text, "score": score} for prompt, text, score in answered]
                shown_means = ("score", gap_name(truncated=params.truncated), "tokens")
                means = {name: float(torch.cat(parts[name]).mean()) for name in shown_means}
                bar.update(start + len(few), means)
        return {name: torch.cat(values) for name, values in parts.items()}, shown

    measured, shown = processes.raise_together(answer_share)
    for size in fits.values():
        size.use_smallest(processes)
    metrics = {name: processes.gather(values, len(prompts)).tolist() for name, values in measured.items()}
    rewards = [name for name in metrics if name.startswith("reward/")]
    counts = {name.removeprefix("reward/"): sum(not math.isnan(x) for x in metrics[name]) for name in rewards}
    require_applied(counts, len(prompts))
    if len(rewards) == 1:  # a single reward is the score
        del metrics[rewards[0]]
    texts = [json.loads(row) for row in processes.gather_strings([json.dumps(row) for row in shown])]
    return Answers(metrics, texts[:samples], fingerprint(prompts))


def _measured(experience: Experience) -> dict[str, Tensor]:
    """Numbers per answer, on the policy's device; NaN where a reward did not apply."""
    rollout, scores = experience.rollout, experience.scores
    kl_BR = k1(experience.old_logprobs_BR, experience.ref_logprobs_BR, rollout.rows.mask_BR)
    return {
        "score": scores.totals_B,
        **{f"reward/{name}": _with_gaps(values, kl_BR.device) for name, values in scores.terms.items()},
        gap_name(truncated=experience.truncated): kl_BR.sum(-1),
        "tokens": rollout.rows.response_lengths_B,
        "finished": rollout.finished_B,
    }


def _with_gaps(values: Sequence[float | None], device: torch.device) -> Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], device=device)
