"""How the cost of an iteration grows, one number changed at a time; prints one JSON line per run.

    python benchmarks/sweep.py > sweep.jsonl

The base is a shape with prompts of 128 and answers of 32 tokens. For each value the forms are measured one after the
other, so that a drift of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

BASE = {"layers": 8, "dim": 512, "heads": 8, "vocab": 50257, "q": 128, "r": 32, "batch": 8, "mini": 4, "epochs": 4}
SWEEPS: dict[str, tuple[int, ...]] = {
    "epochs": (1, 2, 4, 8),
    "q": (16, 64, 128, 256, 512),
    "batch": (4, 8, 16, 32),
    "k": (1, 2, 4, 7),
}
FORMS = ("hydra", "full", "separate")


def main() -> None:
    """Run every point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iters", type=int, default=2)
    iters = parser.parse_args().iters
    for name, values in SWEEPS.items():
        for value in values:
            for form in FORMS if name != "k" else ("hydra",):
                settings = {**BASE, name: value, "iters": iters}
                options = [f"--{key}={number}" for key, number in settings.items()]
                script = Path(__file__).with_name("ppo_iteration.py")
                command = [sys.executable, str(script), "--form", form, *options]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                print(json.dumps({"sweep": name, "value": value, "form": form, **json.loads(told)}), flush=True)


if __name__ == "__main__":
    main()
