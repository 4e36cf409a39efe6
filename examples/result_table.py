"""Print what a finished comparison found as a Markdown table, or how its classifiers did on a test by group.

python examples/result_table.py out/imdb-offline
python examples/result_table.py out/dialogue-detox-offline --test hatecheck
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read report.json, or the evaluations of the reward sections, and print one row per metric or group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of a recipe")
    parser.add_argument("--test", help="name of a test of the reward sections, to print its accuracy by group")
    a = parser.parse_args()
    print("\n".join(groups(a.run, a.test) if a.test else comparison(a.run)))


def comparison(run: Path) -> list[str]:
    """A table of all metrics and facts of the run's report."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    head = ["| | before | after | difference | 95 % interval | n | verdict |", "|---|---|---|---|---|---|---|"]
    return head + [row(name, told) for name, told in (report["metrics"] | report["facts"]).items()]


def groups(run: Path, test: str) -> list[str]:
    """A table of every reward section's accuracy (95 % interval) on the rows of a test, all of them and by group."""
    files = sorted(run.glob("reward/**/evaluation.json"))
    found = {file.parent.name: json.loads(file.read_text(encoding="utf-8"))["tests"][test] for file in files}
    whole = {name: told["groups"] | {"all": told} for name, told in found.items()}
    lines = [f"| | n | {' | '.join(found)} |", "|---" * (2 + len(found)) + "|"]
    for group, first in next(iter(whole.values())).items():
        cells = [accuracy(told[group]) for told in whole.values()]
        lines.append(f"| {group} | {first['n']:,} | {' | '.join(cells)} |")
    return lines


def accuracy(told: dict[str, Any]) -> str:
    """Share of rows that were named rightly, with its interval."""
    return f"{told['accuracy']:.2f} ({told['ci_low']:.2f} to {told['ci_high']:.2f})"


def row(name: str, told: dict[str, Any]) -> str:
    """One metric: mean (median; standard deviation) on both sides, paired difference, interval, n, verdict."""
    sides = [f"{told[side]['mean']:.3f} ({told[side]['median']:.3f}; {told[side]['std']:.3f})" for side in SIDES]
    gap = told["difference"]
    interval = f"{gap['ci_low']:+.3f} to {gap['ci_high']:+.3f}"
    cells = [name, *sides, f"{gap['mean']:+.3f}", interval, f"{told['n']:,}", told.get("verdict", "")]
    return f"| {' | '.join(cells)} |"


SIDES = ("before", "after")

if __name__ == "__main__":
    main()
