"""What was measured on the rows of a reward section, as plain JSON and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hydralign.evaluation import baselines
from hydralign.evaluation.calibration import calibration_bins, expected_calibration_error
from hydralign.evaluation.statistics import wilson
from hydralign.methods.reward import Judged


def baseline_of(judged: Judged, labels: Sequence[str]) -> baselines.Baseline:
    """What an answer that does not read the rows achieves on them: the commonest label, or guessing between two."""
    if judged.label_N is None:
        return baselines.guessing_baseline(judged.right_N.numpy())
    return baselines.majority_baseline(judged.label_N.numpy(), judged.right_N.numpy(), labels)


def recalls_of(judged: Judged, labels: Sequence[str]) -> tuple[baselines.ClassRecall, ...]:
    """Recall of each label; none for comparisons."""
    if judged.label_N is None or judged.choice_N is None:
        return ()
    return baselines.class_recalls(judged.label_N.numpy(), judged.choice_N.numpy(), labels)


def reward_record(judged: Judged, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The judgement as plain JSON: accuracy with Wilson interval, baseline, classes, ties, loss, margin, calibration,
    and warnings.
    """
    right, n = float(judged.right_N.sum()), len(judged.right_N)
    low, high = wilson(right, n)
    bins = calibration_bins(judged.confidence_N.numpy(), judged.right_N.numpy())
    return {
        "accuracy": right / n,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "ties": int((judged.right_N == 0.5).sum()),
        "loss": float(judged.loss_N.mean()),
        "margin": None if judged.margin_N is None else float(judged.margin_N.mean()),
        **baselines.baseline_record(right / n, baseline_of(judged, labels), recalls_of(judged, labels)),
        "calibration": {"error": expected_calibration_error(bins), "bins": [asdict(one) for one in bins]},
    }


def sentence(judged: Judged, labels: Sequence[str] = ()) -> str:
    """Accuracy, interval, ties and calibration in one line; baseline and recalls in the next; then what to doubt."""
    record = reward_record(judged, labels)
    ties = f", {record['ties']} ties counted as half right" if record["ties"] else ""
    margin = "" if record["margin"] is None else f", mean margin {record['margin']:.2f}"
    lines = [
        f"accuracy {record['accuracy']:.3f} (95 % interval {record['ci_low']:.3f} to {record['ci_high']:.3f}, n = "
        f"{record['n']:,}{ties}){margin}, loss {record['loss']:.3f}, calibration error "
        f"{record['calibration']['error']:.3f}.",
        baselines.describe_classes(baseline_of(judged, labels), recalls_of(judged, labels)),
        *(f"Warning: {doubt}" for doubt in record["warnings"]),
    ]
    return "\n".join(lines)
