"""Make the results page and its picture out of what the benchmarks printed.

python benchmarks/against_trl.py --trl-old OLD --trl-new NEW > against.jsonl
python benchmarks/sweep.py > sweep.jsonl
python benchmarks/page.py against.jsonl sweep.jsonl docs/results/performance.svg > tables.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

FORMS = {"hydra": "#2a6f97", "full": "#e07a5f", "separate": "#8d99ae"}
TITLES = {
    "epochs": "PPO epochs",
    "q": "prompt tokens (answers 32)",
    "batch": "rows per iteration",
    "k": "trained layers of 8",
}


def main() -> None:
    """Print the tables, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("against", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("picture", type=Path)
    a = parser.parse_args()
    for line in against_table(lines(a.against)):
        print(line)
    print()
    points = lines(a.sweep)
    for line in sweep_table(points):
        print(line)
    draw(points, a.picture)


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def against_table(told: list[dict[str, Any]]) -> list[str]:
    """One row per comparison."""
    rows = [
        "| comparison | faster | memory | seconds, ours | seconds, theirs | steps | over the floor |",
        "|---|" + "---|" * 6,
    ]
    for row in told:
        seconds = [", ".join(f"{x:.2f}" for x in row[side]) for side in ("our_seconds", "their_seconds")]
        steps = f"{row['our_optimizer_steps']:.0f} / {row['their_optimizer_steps']:.0f}"
        memory = f"{row['memory']:.2f} × ({row['our_mb']} / {row['their_mb']} MB)"
        cells = [row["comparison"], f"{row['faster']:.2f} ×", memory, *seconds, steps, f"{row['times_floor']:.2f} ×"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def sweep_table(points: list[dict[str, Any]]) -> list[str]:
    """One row per value, seconds and megabytes by form."""
    rows = ["| | hydra | full | four models |", "|---|---|---|---|"]
    for name, value in dict.fromkeys((p["sweep"], p["value"]) for p in points):
        by_form = {p["form"]: p for p in points if (p["sweep"], p["value"]) == (name, value)}
        cells = [shown(by_form.get(form)) for form in FORMS]
        rows.append(f"| {TITLES[name]}: {value} | {' | '.join(cells)} |")
    return rows


def shown(point: dict[str, Any] | None) -> str:
    """Seconds and memory of one run."""
    return "" if point is None else f"{point['seconds']:.2f} s, {point['peak_mb'] - point['import_mb']:,.0f} MB"


def draw(points: list[dict[str, Any]], picture: Path) -> None:
    """Seconds per iteration against each number that was changed."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    figure, axes = plt.subplots(1, len(TITLES), figsize=(12, 2.8), layout="constrained")
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for form, color in FORMS.items():
            chosen = [p for p in points if p["sweep"] == name and p["form"] == form]
            if chosen:
                label = {"separate": "four models"}.get(form, form)
                xs, ys = [p["value"] for p in chosen], [p["seconds"] for p in chosen]
                axis.plot(xs, ys, marker="o", markersize=3, color=color, linewidth=1.5, label=label)
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("seconds per iteration")
    axes[0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
