"""Print what a finished comparison found as a Markdown table.

python examples/result_table.py out/imdb-offline
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Read report.json, print one row per metric and fact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of a recipe with a compare section")
    report = json.loads((parser.parse_args().run / "report.json").read_text(encoding="utf-8"))
    print("| | before | after | difference | 95 % interval | n | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name, told in (report["metrics"] | report["facts"]).items():
        print(row(name, told))


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
