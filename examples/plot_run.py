"""Plot a finished run: score, KL and length by PPO iteration, and held-out scores before and after.

python examples/plot_run.py out/imdb-offline docs/results/imdb_sentiment.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

CURVES = {
    "ppo/mean_scores": "score (training prompts)",
    "objective/kl": "KL to reference, nats per answer",
    "tokens/responses_len_mean": "answer length, tokens",
}


def main() -> None:
    """Read the run's files, draw four panels, write one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of a recipe with ppo, and perhaps compare")
    parser.add_argument("picture", type=Path, help="file to write, .svg or .png")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (arguments.run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "ppo/mean_scores" in row]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.8), layout="constrained")
    for axis, (name, title) in zip(axes, CURVES.items(), strict=False):
        axis.plot([row["step"] for row in steps], [row[name] for row in steps], color="#2a6f97", linewidth=1.5)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration")
        if name != "ppo/mean_scores":
            axis.set_ylim(bottom=0)
    compared = arguments.run / "compare"
    draw_held_out(axes[3], compared if compared.exists() else arguments.run / "ppo")
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, metadata={"Date": None} if arguments.picture.suffix == ".svg" else None)
    print(f"wrote {arguments.picture}")


def draw_held_out(axis: Any, run: Path) -> None:
    """Both histograms of held-out scores, with the paired difference as the title."""
    scores = {side: json.loads((run / f"{side}.json").read_text())["metrics"]["score"] for side in ("before", "after")}
    result = json.loads((run / "evaluation.json").read_text())["metrics"]["score"]
    every = [value for values in scores.values() for value in values]
    edges = [min(every) + (max(every) - min(every)) * i / 24 for i in range(25)]
    for (side, values), color in zip(scores.items(), ("#adb5bd", "#2a6f97"), strict=True):
        axis.hist(values, bins=edges, alpha=0.7, color=color, label=f"{side}, mean {result[side]['mean']:.1f}")
    gap = result["difference"]
    axis.set_title(
        f"held out: {gap['mean']:+.1f} [{gap['ci_low']:+.1f}, {gap['ci_high']:+.1f}], n = {result['n']}", fontsize=9
    )
    axis.set_xlabel("score")
    axis.set_ylabel("prompts")
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()
