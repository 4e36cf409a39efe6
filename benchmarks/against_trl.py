"""This library against TRL, in turns on one machine; prints one JSON line per comparison.

    python benchmarks/against_trl.py --trl-old OLD/bin/python --trl-new NEW/bin/python

`--trl-old` has TRL 0.11.4, `--trl-new` TRL 1.12.0, each in the environment that its script under benchmarks/peers/
names. Every comparison runs both sides one after the other, `--pairs` times; a machine's speed drifts, so the ratio of
each pair counts, and the median of those is told beside the bar. Memory is the peak above what lay there after imports,
ours over theirs. No side takes fewer optimizer steps than its own settings say; TRL 1.12.0 takes one per epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS, OLD, OLD_T5, NEW = "ppo_iteration.py", "peers/trl_old.py", "peers/trl_old_t5.py", "peers/trl_new.py"
ABOVE_TOP = {"S": "10", "L": "6"}
"""Layers below the top two."""


@dataclass(frozen=True)
class Comparison:
    """Our arguments, the other side's script and arguments, and the bars: time theirs/ours, memory ours/theirs."""

    name: str
    ours: tuple[str, ...]
    script: str
    theirs: tuple[str, ...]
    time_bar: float
    memory_bar: float | None = None


def comparisons() -> list[Comparison]:
    """All, the fast ones first."""
    listed = []
    for geometry, old, new, memory_bar in (("S", 1.9, 5.0, 0.62), ("L", 4.5, 6.0, 0.5)):
        shape = ("--geometry", geometry)
        frozen = ("--frozen", ABOVE_TOP[geometry])
        ours = ("--form", "hydra", *shape)
        listed += [
            Comparison(f"{geometry}: top 2 trained, TRL 0.11.4", ours, OLD, (*shape, *frozen), old, memory_bar),
            Comparison(f"{geometry}: bf16 against our fp32", (*ours, "--dtype", "bf16"), OURS, ours, 1.3),
            Comparison(f"{geometry}: TRL 1.12.0", ours, NEW, shape, new),
        ]
    everything = ("--geometry", "S")
    listed.append(
        Comparison("S: all layers trained, TRL 0.11.4", ("--form", "full", *everything), OLD, everything, 1.5)
    )
    t5 = ("--geometry", "T")
    listed += [
        Comparison(name, (*t5, "--family", "t5", "--form", *form), OLD_T5, (*t5, *theirs), time_bar, memory_bar)
        for name, form, theirs, time_bar, memory_bar in (
            ("T5, top 2 of the decoder trained, TRL 0.11.4 with LoRA", ("hydra",), (), 3.0, 0.65),
            ("T5, top 2 of the decoder trained, TRL 0.11.4 with all trained", ("hydra",), ("--full",), 4.0, None),
            ("T5, LoRA in the decoder, TRL 0.11.4 with LoRA", ("lora", "--decoder-only"), (), 2.0, None),
            ("T5, LoRA, TRL 0.11.4 with LoRA", ("lora",), (), 1.1, None),
        )
    ]
    return listed


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-old", required=True, help="interpreter with TRL 0.11.4")
    parser.add_argument("--trl-new", required=True, help="interpreter with TRL 1.12.0")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--iters", type=int, default=3, help="counted iterations in each run")
    parser.add_argument("--only", default="", help="comparisons whose name holds this text")
    a = parser.parse_args()
    interpreters = {OURS: sys.executable, OLD: a.trl_old, OLD_T5: a.trl_old, NEW: a.trl_new}
    for comparison in comparisons():
        if a.only in comparison.name:
            print(json.dumps(compare(comparison, interpreters, a.pairs, a.iters)), flush=True)


def compare(comparison: Comparison, interpreters: dict[str, str], pairs: int, iters: int) -> dict[str, Any]:
    """Both sides in turns; medians of the ratios, and what they came from."""
    count = ("--iters", str(iters))
    rows = []
    for _ in range(pairs):
        ours = run(interpreters[OURS], OURS, (*comparison.ours, *count))
        rows.append((ours, run(interpreters[comparison.script], comparison.script, (*comparison.theirs, *count))))
    times = [theirs["seconds"] / ours["seconds"] for ours, theirs in rows]
    memory = [above(ours) / above(theirs) for ours, theirs in rows]
    told: dict[str, Any] = {
        "comparison": comparison.name,
        "faster": round(statistics.median(times), 3),
        "bar": comparison.time_bar,
        "memory": round(statistics.median(memory), 3),
        "memory_bar": comparison.memory_bar,
        "times_floor": round(statistics.median(ours["times_floor"] or 0.0 for ours, _ in rows), 3),
        "our_seconds": [round(ours["seconds"], 2) for ours, _ in rows],
        "their_seconds": [round(theirs["seconds"], 2) for _, theirs in rows],
        "our_mb": round(statistics.median(above(ours) for ours, _ in rows)),
        "their_mb": round(statistics.median(above(theirs) for _, theirs in rows)),
        "our_optimizer_steps": rows[0][0]["optimizer_steps"],
        "their_optimizer_steps": rows[0][1]["optimizer_steps"],
    }
    return told


def above(result: dict[str, Any]) -> float:
    """Peak memory above what lay there after imports, in MB."""
    return result["peak_mb"] - result["import_mb"]


def run(interpreter: str, script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON line that a script prints last."""
    surroundings = {**os.environ, "PYTHONPATH": str(HERE), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [interpreter, "-W", "ignore", str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    if done.returncode:
        sys.exit(f"{interpreter} {script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
