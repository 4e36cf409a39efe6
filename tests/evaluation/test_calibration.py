"""Temperatures and calibration bins, on numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from hydralign.errors import DataError
from hydralign.evaluation.calibration import (
    calibration_bins,
    divide_by_temperatures_of_others,
    expected_calibration_error,
    fit_temperature,
)
from hydralign.evaluation.statistics import wilson


def test_temperature_makes_the_confidence_the_share_that_is_right() -> None:
    """3 of 4 rows with the margin 2 are right, so softmax must say 3/4: 2/T = log 3."""
    logits_NC = [[2.0, 0.0]] * 4
    assert fit_temperature(logits_NC, [0, 0, 0, 1]) == pytest.approx(2 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_temperature_undoes_a_factor_and_ignores_a_shift(factor: float) -> None:
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(size=(4000, 3))
    chances = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    labels_N = (chances.cumsum(axis=1) > rng.uniform(size=(4000, 1))).argmax(axis=1)
    base = fit_temperature(logits_NC, labels_N)
    assert base == pytest.approx(1.0, abs=0.08)
    assert fit_temperature(logits_NC * factor + 5, labels_N) == pytest.approx(base * factor, rel=1e-5)
    assert fit_temperature(np.float32(logits_NC), labels_N) == pytest.approx(base, rel=1e-5)


def test_temperature_stops_at_a_bound_when_every_row_or_half_of_them_is_right() -> None:
    assert fit_temperature([[3.0, 0.0], [0.0, 1.0]], [0, 1]) == pytest.approx(0.05, rel=1e-12)
    assert fit_temperature([[300.0, 0.0], [0.0, 100.0]], [0, 1]) == pytest.approx(0.05, rel=1e-12)
    assert fit_temperature([[3.0, 0.0], [3.0, 0.0]], [0, 1]) == pytest.approx(20.0, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "problem"),
    [
        ([], [], r"shape \(0,\)"),
        (np.zeros((0, 2)), [], r"shape \(0, 2\)"),
        ([[1.0]], [0], "two or more outputs"),
        ([[1.0, 2.0]], [0, 1], r"labels of shape \(2,\)"),
        ([[1.0, 2.0], [float("nan"), 0.0]], [0, 1], r"logits of row 1 .* \(1 such rows"),
        ([[1.0, float("inf")]], [0], "logits of row 0"),
        ([[1.0, 2.0]], [2], "labels from 2 to 2 .* from 0 to 1"),
        ([[1.0, 2.0]], [-1], "labels from -1"),
        ([[1.0, 2.0]], [0.0], "of type float64"),
    ],
)
def test_temperature_of_unusable_rows_is_refused(logits: Any, labels: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        fit_temperature(logits, labels)


def test_bins_hold_count_confidence_share_and_interval() -> None:
    bins = calibration_bins([0.62, 0.68, 0.3, 1.0, 0.95, 0.9], [1, 0.5, 0, 1, 1, 0])
    assert [(one.low, one.high, one.count) for one in bins] == [(0.3, 0.4, 1), (0.6, 0.7, 2), (0.9, 1.0, 3)]
    assert [one.confidence for one in bins] == pytest.approx([0.3, 0.65, 0.95])
    assert [one.accuracy for one in bins] == pytest.approx([0, 0.75, 2 / 3])
    assert (bins[1].ci_low, bins[1].ci_high) == wilson(1.5, 2)
    assert expected_calibration_error(bins) == pytest.approx((0.3 + 2 * 0.1 + 3 * (0.95 - 2 / 3)) / 6)


def test_bins_take_every_lower_edge_and_both_ends() -> None:
    edges = [b / 10 for b in range(11)]
    bins = calibration_bins(edges, [1] * 11)
    assert [one.low for one in bins] == edges[:-1]
    assert [one.count for one in bins] == [1] * 9 + [2]
    assert [one.count for one in calibration_bins(edges, [1] * 11, bins=1)] == [11]


def test_calibration_error_is_near_zero_for_true_probabilities_and_large_for_boasts() -> None:
    rng = np.random.default_rng(1)
    confidence_N = rng.uniform(0.5, 1, size=20_000)
    correct_N = rng.uniform(size=20_000) < confidence_N
    bins = calibration_bins(confidence_N, correct_N)
    assert [one.low for one in bins] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert expected_calibration_error(bins) < 0.01
    assert sum(one.ci_low < one.confidence < one.ci_high for one in bins) >= 4
    boast = expected_calibration_error(calibration_bins(np.full(20_000, 0.99), correct_N))
    assert boast == pytest.approx(0.99 - correct_N.mean())


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "problem"),
    [
        ([], [], 10, "10 bins for"),
        ([0.5], [1, 0], 10, r"\(1,\) confidences and \(2,\) outcomes"),
        ([0.5], [1], 0, "0 bins"),
        ([0.5, 1.2], [1, 1], 10, r"confidence 1.2 in row 1"),
        ([float("nan")], [1], 10, "confidence nan in row 0"),
        ([0.5], [-1], 10, "outcome -1.0 in row 0"),
    ],
)
def test_bins_of_unusable_rows_are_refused(confidence: Any, correct: Any, bins: int, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        calibration_bins(confidence, correct, bins)


def test_calibration_error_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no bin has a row"):
        expected_calibration_error([])


def test_temperature_of_comparisons_calibrates_their_confidence() -> None:
    """Margins of ±4 with 3 in 4 right: after division by T the confidence is 3/4, and the error 0."""
    margins_N = np.array([4.0, 4.0, 4.0, -4.0])
    right_N = (margins_N > 0).astype(float)
    before = expected_calibration_error(calibration_bins(expit(np.abs(margins_N)), right_N))
    temperature = fit_temperature(np.stack([margins_N, np.zeros(4)], axis=1), np.zeros(4, dtype=int))
    after = expected_calibration_error(calibration_bins(expit(np.abs(margins_N / temperature)), right_N))
    assert before == pytest.approx(1 / (1 + math.exp(-4)) - 0.75)
    assert after == pytest.approx(0, abs=1e-6)


def test_logits_are_divided_by_temperatures_that_were_fitted_on_other_groups() -> None:
    generator = np.random.default_rng(0)
    logits_NC = generator.normal(size=(60, 2)) * 4
    labels_N = np.where(generator.random(60) < 0.8, logits_NC.argmax(1), 1 - logits_NC.argmax(1))
    groups = [f"text {n % 30}" for n in range(60)]  # each text and a piece of it
    divided_NC = divide_by_temperatures_of_others(logits_NC, labels_N, groups)
    temperatures = (logits_NC / divided_NC)[:, 0].round(9)
    assert (temperatures[:30] == temperatures[30:]).all()
    assert len(set(temperatures)) == 5
    for temperature in set(temperatures):
        others_N = temperatures != temperature
        assert temperature == pytest.approx(fit_temperature(logits_NC[others_N], labels_N[others_N]), abs=1e-6)
    order = generator.permutation(60)
    again_NC = divide_by_temperatures_of_others(logits_NC[order], labels_N[order], [groups[n] for n in order])
    assert again_NC == pytest.approx(divided_NC[order], rel=1e-5)


def test_single_group_keeps_its_logits() -> None:
    assert divide_by_temperatures_of_others([[3.0, 0.0]] * 2, [0, 1], ["a", "a"]).tolist() == [[3.0, 0.0]] * 2


def test_calibration_error_of_few_rows_is_not_that_of_their_own_fit() -> None:
    # 40 rows that an overconfident model guesses: their own temperature flatters them, those of the others do not.
    own: list[float] = []
    others: list[float] = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        logits_NC, labels_N = generator.normal(size=(20, 2)) * 6, generator.integers(0, 2, size=20)
        right_N = (logits_NC.argmax(1) == labels_N) * 1.0
        fitted_NC = logits_NC / fit_temperature(logits_NC, labels_N)
        crossed_NC = divide_by_temperatures_of_others(logits_NC, labels_N, list(range(20)))
        for into, some_NC in ((own, fitted_NC), (others, crossed_NC)):
            confidence_N = softmax(some_NC, axis=1).max(1)
            into.append(expected_calibration_error(calibration_bins(confidence_N, right_N)))
    assert np.mean(others) > np.mean(own) + 0.01
