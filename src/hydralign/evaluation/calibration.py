"""Do probabilities mean what they say? Bins, their expected error, and the temperature that mends it.

Temperature scaling and the expected calibration error follow Guo et al. 2017 (arXiv 1706.04599, sections 4.2 and 2);
each bin has a Wilson interval besides. Here are numbers only: drawing them is the report's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from hydralign.errors import DataError
from hydralign.evaluation.statistics import wilson

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Bin:
    """Predictions with a confidence in [low, high): their count, mean confidence, and the share that was correct.

    `[ci_low, ci_high]` is the share's 95 % Wilson interval; a calibrated bin's confidence lies in it. Ties count half.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    ci_low: float
    ci_high: float


def fit_temperature(logits_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """The T > 0 with the least mean cross-entropy of softmax(logits / T); one minimum, as it is convex in 1/T.

    T > 1 tells of too much confidence, T < 1 of too little. It is sought between 0.05 and 20 and is one of these where
    none between is better: 0.05 when all rows are right with room to spare, 20 when the logits know nothing.
    Comparisons are the case of two columns, margin and 0, with label 0. Raises DataError for no rows, fewer than two
    columns, NaN, infinity or labels that name no column.
    """
    logits_NC, labels_N = np.asarray(logits_NC, dtype=np.float64), np.asarray(labels_N)
    _check_logits(logits_NC, labels_N)
    right_N = logits_NC[np.arange(len(labels_N)), labels_N]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.mean(logsumexp(logits_NC * scale, axis=1) - right_N * scale))

    bounds = (math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    # The search never tries the bounds themselves.
    return math.exp(min((*bounds, float(found.x)), key=loss))


def divide_by_temperatures_of_others(
    logits_NC: ArrayLike, labels_N: ArrayLike, groups_N: Sequence[Hashable], folds: int = 5
) -> NDArray[np.float64]:
    """Each row's logits ÷ a temperature that was fitted on rows of other folds, so that they tell how well such a
    temperature does on rows that it was not fitted on.

    Rows of one group, such as a text and pieces of it, share a fold; groups go to folds by a hash of their names.
    With a single group there are no other rows, and its logits stay as they are. Raises as `fit_temperature` does.
    """
    logits_NC, labels_N = np.array(logits_NC, dtype=np.float64), np.asarray(labels_N)
    _check_logits(logits_NC, labels_N)
    names = sorted(dict.fromkeys(groups_N), key=lambda name: blake2b(repr(name).encode(), digest_size=8).digest())
    fold_of = {name: place % folds for place, name in enumerate(names)}
    fold_N = np.array([fold_of[name] for name in groups_N])
    divided_NC = logits_NC.copy()
    for fold in range(min(folds, len(names))):
        others_N = fold_N != fold
        if others_N.any():
            divided_NC[~others_N] /= fit_temperature(logits_NC[others_N], labels_N[others_N])
    return divided_NC


def temperature_doubt(temperature: float) -> str | None:
    """A sentence on a temperature that lies at an end of `fit_temperature`'s search, so that it means nothing exact."""
    if math.isclose(temperature, LOWEST_TEMPERATURE):
        return (
            f"The temperature is {LOWEST_TEMPERATURE:g}, the lowest that is tried: every held-out text is "
            "classified rightly with room to spare, so probabilities are near 0 and 1 and their size means little. "
            "Hold out more texts, or harder ones."
        )
    if math.isclose(temperature, HIGHEST_TEMPERATURE):
        return (
            f"The temperature is {HIGHEST_TEMPERATURE:g}, the highest that is tried: on held-out texts the outputs "
            "know next to nothing, so probabilities are near those of chance. Hold out more texts, "
            "check the labels, or train longer."
        )
    return None


def calibration_bins(probabilities_N: ArrayLike, correct_N: ArrayLike, bins: int = 10) -> list[Bin]:
    """The non-empty ones of `bins` bins of equal width over [0, 1], lowest first; 1 itself is in the last.

    `probabilities_N` are the confidences in the answers that were given, `correct_N` is 1 where one was right, 0 where
    it was wrong, and 0.5 for a tie. Raises DataError for no or unequal numbers of rows and for values outside [0, 1].
    """
    confidence_N = np.asarray(probabilities_N, dtype=np.float64)
    correct_N = np.asarray(correct_N, dtype=np.float64)
    if bins < 1 or confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape or not len(confidence_N):
        raise DataError(
            f"{bins} bins for {confidence_N.shape} confidences and {correct_N.shape} outcomes: calibration needs a "
            "bin, and both numbers for each of one or more rows. Check which rows were counted."
        )
    for name, values_N in (("confidence", confidence_N), ("outcome", correct_N)):
        bad = np.flatnonzero(~((values_N >= 0) & (values_N <= 1)))
        if len(bad):
            raise DataError(
                f"{name} {values_N[bad[0]]} in row {bad[0]} ({len(bad)} such in all) is not from 0 to 1: it is no "
                "probability. Check what it was computed from."
            )
    edges = np.arange(bins + 1) / bins
    bin_N = np.digitize(confidence_N, edges[1:-1])
    return [_bin(edges[b], edges[b + 1], confidence_N[bin_N == b], correct_N[bin_N == b]) for b in np.unique(bin_N)]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy − mean confidence| of the bins, weighted by their counts; 0 is calibrated, 1 is the worst."""
    rows = sum(one.count for one in bins)
    if not rows:
        raise DataError("no bin has a row: there is no calibration to speak of. Give at least one prediction.")
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / rows


def _check_logits(logits_NC: NDArray[np.float64], labels_N: NDArray[Any]) -> None:
    if logits_NC.ndim != 2 or logits_NC.shape[1] < 2 or labels_N.shape != logits_NC.shape[:1] or not len(labels_N):
        raise DataError(
            f"logits of shape {logits_NC.shape} and labels of shape {labels_N.shape}: a temperature is fitted on at "
            "least one row of two or more outputs, each with its label. Give held-out rows."
        )
    bad = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(bad):
        raise DataError(
            f"logits of row {bad[0]} are {logits_NC[bad[0]]} ({len(bad)} such rows in all): no temperature fits them. "
            "Find where NaN or infinity arose."
        )
    columns = logits_NC.shape[1]
    if not np.issubdtype(labels_N.dtype, np.integer) or labels_N.min() < 0 or labels_N.max() >= columns:
        raise DataError(
            f"labels from {labels_N.min()} to {labels_N.max()} of type {labels_N.dtype} for {columns} outputs: each "
            f"must be a whole number from 0 to {columns - 1}. Check how labels became columns."
        )


def _bin(low: float, high: float, confidence_N: NDArray[np.float64], correct_N: NDArray[np.float64]) -> Bin:
    count, correct = len(correct_N), float(correct_N.sum())
    ci_low, ci_high = wilson(correct, count)
    return Bin(float(low), float(high), count, float(confidence_N.mean()), correct / count, ci_low, ci_high)
