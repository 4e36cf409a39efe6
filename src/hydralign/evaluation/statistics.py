"""Is after better than before? Paired differences with an interval, and a sentence that says it.

The unit is the prompt: position i of both lists is the same held-out prompt, and prompts are what is resampled
(several answers to one prompt are averaged before they come here). Nothing here corrects for looking at many metrics
at once.

The interval of the mean difference is the wider, at either end, of Student's t interval and the studentised bootstrap
(Efron and Tibshirani 1993, section 12.5). The first holds for symmetric differences, which two equal models give, and
is too short at one end for skewed ones; the second is the other way about. Where few prompts changed, neither holds for
skewed differences, so that the level is raised there; docs/compare.md has the measured rates of wrong verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hydralign.errors import ConfigError, DataError

Verdict = Literal["better", "worse", "not distinguishable"]

_FEW = 30
"""Below this many prompts an interval rests on little."""

_MANY_CHANGED = 40
"""From this many changed prompts on an interval has its nominal level."""

_LEAST_SPREAD = 0.25
"""Least standard error of a resample ÷ that of the sample: a resample of nearly equal values says nothing of spread."""


@dataclass(frozen=True)
class Difference:
    """One metric before and after, on the same prompts.

    Standard deviations are over prompts (÷ n − 1). `difference` is mean(after − before), `[ci_low, ci_high]` its
    interval. `changed` counts prompts whose value moved at all. Better and worse respect `higher_is_better`.
    """

    metric: str
    n: int
    before_mean: float
    before_median: float
    before_std: float
    after_mean: float
    after_median: float
    after_std: float
    difference: float
    ci_low: float
    ci_high: float
    confidence: float
    higher_is_better: bool
    changed: int
    verdict: Verdict
    unit: str = "prompts"
    """What `n` counts, in words: prompts, rows, blocks of answers."""

    def sentence(self) -> str:
        """The result in one line of plain English, with the numbers, and with its weakness when it has one."""
        digits = decimals(self.ci_low, self.ci_high)
        before, after = f"{self.before_mean:z.{digits}f}", f"{self.after_mean:z.{digits}f}"
        difference, low, high = (f"{x:+z.{digits}f}" for x in (self.difference, self.ci_low, self.ci_high))
        level = f"{100 * self.confidence:g} %"
        sentence = (
            f"{self.metric}: {before} → {after} (difference {difference}, {level} interval {low} to {high}, "
            f"n = {self.n:d}{'' if self.unit == 'prompts' else f' {self.unit}'}): {self.verdict}."
        )
        needed = fewest_changes(self.confidence)
        if self.n < needed:
            sentence += f" n = {self.n} is too small for any verdict: {needed} {self.unit} must change at {level}."
        elif 0 < self.changed < needed:
            sentence += f" Only {self.changed} {self.unit} changed; fewer than {needed} prove nothing at {level}."
        if self.n < _FEW:
            sentence += f" Warning: n = {self.n} is below {_FEW}, so the interval is rough."
        return sentence


def decimals(low: float, high: float) -> int:
    """Decimals to print an interval with: two digits of its half width, and no bound that is not 0 rounded to 0."""
    half_width = (high - low) / 2
    wanted = [-math.floor(math.log10(abs(x))) for x in (low, high) if abs(x) > 1e-9]
    if half_width > 1e-9:
        wanted.append(1 - math.floor(math.log10(half_width)))
    return min(max(0, *wanted), 6) if wanted else 2


def compare_paired(
    name: str,
    before: Sequence[float] | NDArray[np.floating],
    after: Sequence[float] | NDArray[np.floating],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    unit: str = "prompts",
) -> Difference:
    """Compare a metric's values, one per prompt (or other `unit`), before and after; equal arguments give equal
    intervals.

    "better" and "worse" need an interval without 0 and enough prompts that changed: with fewer than
    log₂(2 ÷ (1 − confidence)), 6 at 95 %, an exact paired test cannot reach that confidence whatever the numbers.
    Differences that are all equal have the interval [d, d].
    Raises DataError for unequal lengths, fewer than 2 prompts, NaN or infinity; ConfigError for the settings.
    """
    if not 0 < confidence < 1 or resamples < 100:
        raise ConfigError(
            f"confidence={confidence}, resamples={resamples}: no interval can be drawn from these. "
            "Use a confidence between 0 and 1, such as 0.95, and at least 100 resamples, such as 2000."
        )
    before_P, after_P = _numbers(name, before), _numbers(name, after)
    _check_pairs(name, before_P, after_P)
    difference_P = after_P - before_P
    low, high = _mean_interval(difference_P, confidence=confidence, resamples=resamples, seed=seed)
    changed = int(np.count_nonzero(difference_P))
    return Difference(
        metric=name,
        n=len(difference_P),
        before_mean=float(before_P.mean()),
        before_median=float(np.median(before_P)),
        before_std=float(before_P.std(ddof=1)),
        after_mean=float(after_P.mean()),
        after_median=float(np.median(after_P)),
        after_std=float(after_P.std(ddof=1)),
        difference=float(difference_P.mean()),
        ci_low=low,
        ci_high=high,
        confidence=confidence,
        higher_is_better=higher_is_better,
        changed=changed,
        verdict=_verdict(low, high, higher_is_better, changed >= fewest_changes(confidence)),
        unit=unit,
    )


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927), within [0, 1]; ties may count one half.

    Raises DataError for n < 1 or successes outside [0, n]; ConfigError for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} is not between 0 and 1: no interval has it. Use 0.95, say.")
    if n < 1 or not 0 <= successes <= n:
        raise DataError(
            f"{successes} successes of {n}: a proportion needs n >= 1 and successes from 0 to n. "
            "Check how they were counted."
        )
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share, shrink = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half_width = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n successes the outer bound is 0 or 1 exactly; rounding would leave it beside that.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == n else centre + half_width
    return low, high


def _numbers(name: str, values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: {values!r:.60} is no list of numbers ({error}): there is no mean of it. Give one number per "
            "prompt."
        ) from error


def _check_pairs(name: str, before_P: NDArray[np.float64], after_P: NDArray[np.float64]) -> None:
    if before_P.ndim != 1 or before_P.shape != after_P.shape:
        raise DataError(
            f"{name}: shapes {before_P.shape} before and {after_P.shape} after: each prompt needs one number on both "
            "sides, in the same order. Evaluate both models on the same prompts."
        )
    if len(before_P) < 2:
        raise DataError(
            f"{name}: n = {len(before_P)}: a spread needs at least 2 prompts. Give more prompts, 500 where possible."
        )
    for side, values_P in (("before", before_P), ("after", after_P)):
        bad = np.flatnonzero(~np.isfinite(values_P))
        if len(bad):
            raise DataError(
                f"{name}: {values_P[bad[0]]} at prompt {bad[0]} {side} ({len(bad)} such in all): a mean over it says "
                "nothing. Repair the metric, or leave those prompts out on both sides."
            )


def _mean_interval(
    difference_P: NDArray[np.float64], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean, [d, d] when all differences agree.

    It reaches at least as far as the interval over the prompts that changed, times their share: those that did not
    change say nothing of the direction.
    """
    largest = float(np.abs(difference_P).max())
    if float(np.ptp(difference_P)) <= 1e-12 * largest:  # subtraction noise is no spread
        mean = float(difference_P.mean())
        return mean, mean
    scaled_P = difference_P / largest
    changed_C = scaled_P[scaled_P != 0]
    outside = _outside(confidence, max(len(changed_C), fewest_changes(confidence)))
    low, high = _interval(scaled_P, outside, resamples, seed)
    if 2 < len(changed_C) < len(scaled_P):
        share = len(changed_C) / len(scaled_P)
        ends = _interval(changed_C, outside, resamples, seed)
        low, high = min(low, share * ends[0]), max(high, share * ends[1])
    return low * largest, high * largest


def _interval(values_P: NDArray[np.float64], outside: float, resamples: int, seed: int) -> tuple[float, float]:
    """Of the mean: t and studentised bootstrap, the wider end of both, each missing `outside`."""
    mean, n = float(values_P.mean()), len(values_P)
    error = float(values_P.std(ddof=1)) / math.sqrt(n)
    t = float(stats.t.ppf(1 - outside / 2, n - 1))
    if n < 3 or error <= 1e-12 * abs(mean):  # resamples of two values, or of equal ones, have no spread
        return mean - t * error, mean + t * error
    resamples = max(resamples, math.ceil(10 / outside))  # at least 5 of them beyond either end
    ratios_R = np.sort(_studentized_means(values_P, mean, error, resamples, seed))
    beyond = int(outside / 2 * resamples)
    low = mean - max(t, float(ratios_R[resamples - 1 - beyond])) * error
    high = mean + max(t, -float(ratios_R[beyond])) * error
    return low, high


def _outside(confidence: float, changed: int) -> float:
    """The share of means that an interval may miss: 1 − confidence, less where few prompts changed."""
    return (1 - confidence) * min(1.0, (changed / _MANY_CHANGED) ** 1.25)


def _studentized_means(
    values_P: NDArray[np.float64], mean: float, error: float, resamples: int, seed: int
) -> NDArray[np.float64]:
    """(mean of a resample − `mean`) ÷ the resample's own standard error, for each of `resamples`."""
    n, generator = len(values_P), np.random.default_rng(seed)
    centred_P = values_P - mean
    ratios = []
    rows = max(1, 4_000_000 // n)
    for start in range(0, resamples, rows):
        drawn_RP = centred_P[generator.integers(0, n, size=(min(rows, resamples - start), n))]
        errors_R = drawn_RP.std(axis=1, ddof=1) / math.sqrt(n)
        ratios.append(drawn_RP.mean(axis=1) / np.maximum(errors_R, _LEAST_SPREAD * error))
    return np.concatenate(ratios)


def fewest_changes(confidence: float) -> int:
    """Fewest one-sided changes whose two-sided sign test p-value, 2·0.5ᵐ, is at most 1 − confidence."""
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def _verdict(low: float, high: float, higher_is_better: bool, enough_changed: bool) -> Verdict:
    if not enough_changed or low <= 0 <= high:
        return "not distinguishable"
    return "better" if (low > 0) == higher_is_better else "worse"
