"""Before and after on held-out prompts: the same prompts, the same random numbers, paired differences.

Answers are sampled with the training run's own settings but from a stream of their own, so that evaluating changes
no training token, and both times the same uniform numbers are used.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hydralign.algorithms.kl import k1
from hydralign.evaluation.statistics import Difference, compare_paired
from hydralign.generation.sampler import Sampler, sample
from hydralign.models.policy import Policy
from hydralign.processes import ALONE, Processes
from hydralign.rewards.combine import RewardTerm
from hydralign.rollout import collect
from hydralign.types import Prompt, SamplingPlan

EVALUATION = 0xFFFF_FFFF
"""Iteration number that keys the generator of evaluations; no training iteration reaches it."""


@dataclass(frozen=True)
class Answers:
    """Held-out answers, told in numbers per prompt (all processes' prompts, in order)."""

    metrics: dict[str, list[float]]
    samples: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps({"metrics": self.metrics, "samples": self.samples}) + "\n")
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Answers:
        """What `save` wrote."""
        return cls(**json.loads(path.read_text()))


def answer_held_out(
    policy: Policy,
    prompts: Sequence[Prompt],
    terms: Sequence[RewardTerm],
    plan: SamplingPlan,
    *,
    micro_rows: int = 16,
    samples: int = 8,
    processes: Processes = ALONE,
    sampler: Sampler = sample,
) -> Answers:
    """Answer every prompt once. Metrics: score, each reward term, kl (k1 sum, nats), tokens, finished (0 or 1)."""
    share = processes.share(len(prompts))
    own = list(prompts[share])
    experience = collect(
        policy, own, terms, plan.at(EVALUATION, first_row=share.start), micro_rows=micro_rows, sampler=sampler
    )
    rollout, scores = experience.rollout, experience.scores
    dense_B = [sum(row) if row else 0.0 for row in scores.token_scores or [None] * len(own)]
    kl_BR = k1(experience.old_logprobs_BR, experience.ref_logprobs_BR, rollout.rows.mask_BR)
    metrics = {"score": scores.scores_B.double().cpu() + torch.tensor(dense_B, dtype=torch.float64)}
    if len(terms) > 1:
        for name, values in scores.terms.items():
            metrics[f"reward/{name}"] = torch.tensor([float("nan") if v is None else v for v in values])
    metrics |= {
        "kl": kl_BR.sum(-1),
        "tokens": rollout.rows.response_lengths_B,
        "finished": rollout.finished_B,
    }
    shown = [
        {"query": prompt.text, "response": completion, "score": round(score, 6)}
        for prompt, completion, score in zip(
            own[:samples], rollout.completions, metrics["score"].tolist(), strict=False
        )
    ]
    total = len(prompts)
    gathered = {name: processes.gather(x.double().to(policy.device), total).tolist() for name, x in metrics.items()}
    return Answers(gathered, shown)


NEUTRAL = ("kl", "tokens", "finished")
"""Metrics that describe the answers: more of them is neither better nor worse."""


def compare_answers(before: Answers, after: Answers, *, confidence: float = 0.95) -> list[Difference]:
    """Paired differences of the score and of each reward term; the score comes first.

    Prompts that a term did not apply to, before or after, are left out of that term's n.
    """
    differences = []
    for name in before.metrics:
        if name in NEUTRAL:
            continue
        pairs = zip(before.metrics[name], after.metrics[name], strict=True)
        told = [(old, new) for old, new in pairs if not (math.isnan(old) or math.isnan(new))]
        if len(told) >= 2:
            old, new = zip(*told, strict=True)
            differences.append(compare_paired(name, old, new, confidence=confidence))
    return differences


def as_record(differences: Sequence[Difference], before: Answers, after: Answers) -> dict[str, Any]:
    """The comparison as plain JSON: `metrics.<name>` with interval and verdict, `facts.<name>` with means only."""
    metrics = {
        d.metric: {
            "before": {"mean": d.before_mean, "median": d.before_median, "std": d.before_std},
            "after": {"mean": d.after_mean, "median": d.after_median, "std": d.after_std},
            "difference": {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high},
            "n": d.n,
            "confidence": d.confidence,
            "higher_is_better": d.higher_is_better,
            "primary": d.metric == "score",
            "verdict": d.verdict,
            "sentence": d.sentence(),
        }
        for d in differences
    }
    facts = {
        name: {"before": statistics.fmean(before.metrics[name]), "after": statistics.fmean(after.metrics[name])}
        for name in NEUTRAL
    }
    return {"metrics": metrics, "facts": facts}
