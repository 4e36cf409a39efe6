"""Two models on the same held-out prompts: every metric with its paired interval, and the record of it all.

Metrics can be better or worse. Facts describe the answers (how long, how far from the first model, how varied): they
change or do not, and whether that is good depends on what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydralign.algorithms.kl import gap_name
from hydralign.errors import ConfigError, DataError, did_you_mean
from hydralign.evaluation.held_out import Answers
from hydralign.evaluation.statistics import Difference, compare_paired
from hydralign.evaluation.text_metrics import distinct_2_blocks, paired_distinct_2

FACTS = ("kl", "logprob_gap", "tokens", "finished")
"""Numbers per answer of which more is neither better nor worse; of the first two there is one, as `gap_name` says."""

VARIETY = "distinct-2"
"""A fact of many answers together."""

BLOCKS = "blocks"
"""What such a fact is counted over: blocks of answers to neighbouring prompts."""


@dataclass(frozen=True)
class Share:
    """The share of answers whose metric `of` lies above a bound, as a metric of its own."""

    name: str
    of: str
    above: float


@dataclass(frozen=True)
class Comparison:
    """What came out. The score comes first among the metrics; it is the primary one."""

    metrics: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    variety: tuple[float, float] | None = None
    """distinct-2 of all answers over equal token counts, before and after; None without texts."""


def compare_answers(
    before: Answers, after: Answers, *, shares: Sequence[Share] = (), confidence: float = 0.95
) -> Comparison:
    """Paired differences of every metric and fact, prompt by prompt; distinct-2 by blocks of neighbouring prompts.

    Prompts that a metric did not apply to, before or after, are left out of its n. Raises DataError when the two sides
    are known to have answered other prompts, and as `check_shares` does.
    """
    if before.rows and after.rows and before.rows != after.rows:
        raise DataError(
            f"the prompts before ({before.rows}) and after ({after.rows}) are not the same ones in the same order: "
            "their answers cannot be paired. Answer the same prompts twice."
        )
    check_shares(shares, before.metrics)
    pairs = {name: _paired(before.metrics[name], after.metrics[name]) for name in before.metrics}
    for share in shares:
        pairs[share.name] = tuple([float(x > share.above) for x in side] for side in pairs[share.of])
    paired = {name: sides for name, sides in pairs.items() if len(sides[0]) >= 2}
    differences = {name: compare_paired(name, *sides, confidence=confidence) for name, sides in paired.items()}
    metrics = tuple(difference for name, difference in differences.items() if name not in FACTS)
    facts = [differences[name] for name in FACTS if name in differences]
    old, new = ([sample["response"] for sample in side.samples] for side in (before, after))
    if not len(old) == len(new) == len(before.metrics["score"]):
        return Comparison(metrics, tuple(facts))
    blocks = distinct_2_blocks(old, new)
    if blocks[0]:
        facts.append(compare_paired(VARIETY, *blocks, confidence=confidence, unit=BLOCKS))
    return Comparison(metrics, tuple(facts), paired_distinct_2(old, new))


def check_shares(shares: Sequence[Share], metrics: Iterable[str]) -> None:
    """Raise ConfigError for a share of a metric that is not there, or under a name that is taken, by a fact too."""
    known = dict.fromkeys(metrics)
    for share in shares:
        if share.of not in known:
            raise ConfigError(
                f"compare.shares: {share.name!r} is a share of {share.of!r}, which is no metric here: there is nothing "
                f"to count. {did_you_mean(share.of, known)}"
            )
        if share.name in (*known, *FACTS, VARIETY):
            raise ConfigError(
                f"compare.shares: there would be a second metric or fact called {share.name!r}: only one of them could "
                "be shown. Give the share another name."
            )
        known[share.name] = None


def _paired(before: Sequence[float], after: Sequence[float]) -> tuple[list[float], ...]:
    """Both sides of the prompts that have a number on both."""
    both = [pair for pair in zip(before, after, strict=True) if not any(map(math.isnan, pair))]
    return [old for old, _ in both], [new for _, new in both]


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON: `metrics.<name>` with a verdict, `facts.<name>` without one."""
    metrics = {
        d.metric: {
            **_numbers(d),
            "higher_is_better": d.higher_is_better,
            "primary": d.metric == "score",
            "verdict": d.verdict,
            "sentence": d.sentence(),
        }
        for d in comparison.metrics
    }
    facts: dict[str, Any] = {d.metric: {**_numbers(d), "sentence": fact_sentence(d)} for d in comparison.facts}
    if comparison.variety and VARIETY in facts:
        whole = dict(zip(("before", "after"), comparison.variety, strict=True))
        facts[VARIETY]["all_answers"] = whole | {"ratio": whole["after"] / whole["before"]}
    return {"metrics": metrics, "facts": facts}


def fact_sentence(difference: Difference) -> str:
    """The difference in one line that does not judge it."""
    sentence = difference.sentence()
    if difference.metric == gap_name(truncated=True):
        sentence += " A log-probability gap in nats; no KL, since top-k or top-p cut off what is sampled."
    changed = "changed" if difference.verdict != "not distinguishable" else "no change distinguishable from chance"
    return sentence.replace(f": {difference.verdict}.", f": {changed}.", 1)


def _numbers(difference: Difference) -> Mapping[str, Any]:
    d = difference
    return {
        "before": {"mean": d.before_mean, "median": d.before_median, "std": d.before_std},
        "after": {"mean": d.after_mean, "median": d.after_median, "std": d.after_std},
        "difference": {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high},
        "n": d.n,
        "unit": d.unit,
        "confidence": d.confidence,
    }
