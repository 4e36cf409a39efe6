"""Run the same tiny recipes in two checkouts, compare every number that they leave, and print one JSON line.

    python benchmarks/same_numbers.py BEFORE AFTER [--work FOLDER] [--only NAME ...]

Both run in this environment, each with its own `src`, on the same models and data, which BEFORE makes. Compared are all
lines of metrics.jsonl and samples.jsonl but their times, every tensor of every checkpoint and saved model, bit by bit,
and report.json but its versions. `same` says whether nothing differs; the first differences are listed, and the exit
status is 1 then. Equal code gives equal bits where products repeat on the machine (hydralign asks for that itself).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

WORDS = ("this", "that", "thing", "other", "small", "plain")
SHOWN = 20
NOT_COMPARED = ("time/", "versions", "seconds")
"""Beginnings of keys whose values differ from run to run."""
MAKE_MODEL = """
import sys
from hydralign.testing import tiny_model, tiny_tokenizer
tokenizer = tiny_tokenizer()
tiny_model(tokenizer, family=sys.argv[2], layers=3).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
REWARDS = """
def plainness(completions):
    return [sum(word in text for word in ("plain", "words", "th")) - 0.1 * len(text) for text in completions]
"""
HASH = {"by": "hash", "percent": 40}
ADAPTIVE = {"coefficient": 0.1, "controller": {"type": "adaptive", "target": 2, "horizon": 100}}
FORMS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 4},
    "lora_top": {"type": "lora", "rank": 4, "unfrozen_layers": 1},
    "hydra_head": {"type": "hydra", "unfrozen_layers": 1},
    "hydra_branch": {"type": "hydra", "unfrozen_layers": 2, "value": "branch"},
}


def main() -> int:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work", type=Path, help="keep what the runs leave in this folder, which must be new")
    parser.add_argument("--only", nargs="*", help="names of recipes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        make_inputs(work / "inputs", arguments.before.resolve())
        recipes = {n: r for n, r in make_recipes(work / "inputs").items() if not arguments.only or n in arguments.only}
        sides = [work / "before", work / "after"]
        checkouts = [checkout.resolve() for checkout in (arguments.before, arguments.after)]
        with ThreadPoolExecutor() as both:
            list(both.map(run_all, sides, checkouts, [recipes] * 2))
        counts, differences = compare_folders(*sides)
    print(json.dumps({"same": not differences, **counts, "differences": differences[:SHOWN], "recipes": list(recipes)}))
    return bool(differences)


def run_python(checkout: Path, arguments: list[str], folder: Path) -> None:
    """Run Python with this checkout's package in `folder`; its output is shown when it fails."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(arguments)[:200]}\n{done.stdout}\n{done.stderr}")


def make_inputs(folder: Path, checkout: Path) -> None:
    """Two tiny models, data of every kind, and a reward function."""
    folder.mkdir(parents=True)
    for family in ("gpt2", "llama"):
        run_python(checkout, ["-c", MAKE_MODEL, str(folder / family), family], folder)
    openings = [" ".join(words) for words in product(WORDS, repeat=2)]
    longer = [f"{text} and {text[::-1]}" if n % 3 else text for n, text in enumerate(openings)]
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": t, "completion": f" plain words {n % 5}"} for n, t in enumerate(longer)],
        "comparisons": [{"prompt": t, "chosen": " plain words", "rejected": f" other {t[:4]}"} for t in longer],
        "labelled": [{"text": f"{t} {word}", "label": word} for word in WORDS[:2] for t in longer],
        "prompts": [{"prompt": t, "reference": " words"} for t in longer],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewards.py").write_text(REWARDS)


def make_recipes(inputs: Path) -> dict[str, dict[str, Any]]:
    """A whole chain, and PPO in every form on either family, with comparisons."""
    data = {name: {"source": str(inputs / f"{name}.jsonl"), "held_out": HASH} for name in ("demonstrations", "prompts")}
    more = {name: {"source": str(inputs / f"{name}.jsonl"), "held_out": HASH} for name in ("comparisons", "labelled")}
    function = {"type": "function", "function": f"{inputs / 'rewards.py'}:plainness"}
    supervised: dict[str, Any] = {
        "epochs": 2,
        "batch": {"rows": 8, "micro_rows": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup": 0.2, "decay": "linear"},
        "evaluation": {"every": 2},
        "saving": {"checkpoint_every": 3},
    }
    ppo: dict[str, Any] = {
        "steps": 3,
        "rewards": [function],
        "sampling": {"max_new_tokens": 8, "min_new_tokens": 2, "temperature": 0.9},
        "batch": {"rows": 8, "samples_per_prompt": 2, "epochs": 2, "minibatches": 2, "micro_rows": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "shaping": {"scale": "running", "clip": 3, "missing_eos_penalty": 0.5},
        "loss": {"entropy_coefficient": 0.01},
        "kl": ADAPTIVE,
        "evaluation": {"every": 2, "prompts": 8},
        "saving": {"checkpoint_every": 2, "samples_every": 1},
    }
    compare: dict[str, Any] = {"prompts": 12, "sampling": {"max_new_tokens": 8}}
    one = {"output": "out", "seed": 3, "data": {"prompts": data["prompts"]}, "ppo": ppo, "compare": compare}
    recipes: dict[str, dict[str, Any]] = {
        f"{family}_{name}": {**one, "model": {"path": str(inputs / family), "form": form, "precision": "fp32"}}
        for family in ("gpt2", "llama")
        for name, form in FORMS.items()
    }
    recipes["chain"] = {
        "output": "out",
        "seed": 5,
        "model": {"path": str(inputs / "gpt2"), "precision": "fp32"},
        "data": data | more,
        "sft": supervised,
        "reward": [
            {"name": "pairs", **supervised},
            {"name": "labels", **supervised, "task": {"type": "labels", "names": {w: w.upper() for w in WORDS[:2]}}},
            {"name": "lora", **supervised, "model": recipes["gpt2_lora"]["model"], "freeze_layers": 1},
        ],
        "ppo": {
            **ppo,
            "rewards": [
                {"type": "model", "path": "{output}/reward/pairs/model", "minus_reference": "reference"},
                {"type": "classifier", "path": "{output}/reward/labels/model", "label": "THIS", "weight": 0.5},
                function,
            ],
            "advantages": {"gamma": 0.99, "lam": 0.9},
            "kl": {"estimator": "k3", "coefficient": 0.2},
        },
        "compare": {
            **compare,
            "judges": [{"type": "classifier", "path": "{output}/reward/labels/model", "label": "THAT"}],
        },
    }
    adapted = {"path": str(inputs / "llama"), "form": FORMS["lora"], "precision": "fp32"}
    recipes["sft_lora"] = {"output": "out", "model": adapted, "data": data, "sft": {**supervised, "packing": False}}
    return recipes


def run_all(side: Path, checkout: Path, recipes: dict[str, dict[str, Any]]) -> None:
    """`hydralign run` for each recipe, in a folder of its own."""
    for name, recipe in recipes.items():
        folder = side / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run_python(checkout, ["-m", "hydralign", "run", "recipe.yaml"], folder)


def compare_folders(before: Path, after: Path) -> tuple[dict[str, int], list[str]]:
    """How many lines and tensors were compared, and what differs."""
    counts = {"metric_lines": 0, "sample_lines": 0, "tensors": 0, "reports": 0}
    files = [{str(file.relative_to(side)) for file in side.rglob("*") if file.is_file()} for side in (before, after)]
    differences = [f"only on one side: {name}" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        pair = before / name, after / name
        if name.endswith(".safetensors"):
            counts["tensors"] += len(load_file(pair[0]))
            differences += (f"{name}: {found}" for found in different_tensors(*pair))
        elif name.endswith(("metrics.jsonl", "samples.jsonl", "before.json", "report.json")):
            kind = {"metrics.jsonl": "metric_lines", "samples.jsonl": "sample_lines"}.get(Path(name).name, "reports")
            counts[kind] += len(pair[0].read_text().splitlines()) if kind != "reports" else 1
            differences += (f"{name}: {found}" for found in different_lines(*pair))
    return counts, differences


def different_tensors(before: Path, after: Path) -> Iterator[str]:
    """Names of tensors that are not equal to the bit."""
    a, b = load_file(before), load_file(after)
    yield from (f"{name} only on one side" for name in sorted(a.keys() ^ b.keys()))
    for name in sorted(a.keys() & b.keys()):
        if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            gap = (a[name].double() - b[name].double()).abs().max() if a[name].shape == b[name].shape else "shape"
            yield f"{name} differs by {gap}"


def different_lines(before: Path, after: Path) -> Iterator[str]:
    """What differs in two files of JSON, or of JSON lines."""
    lines = [
        file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()] for file in (before, after)
    ]
    if len(lines[0]) != len(lines[1]):
        yield f"{len(lines[0])} and {len(lines[1])} lines"
    for number, (a, b) in enumerate(zip(*lines, strict=False)):
        yield from (f"line {number}, {found}" for found in different_values(json.loads(a), json.loads(b), ""))


def different_values(a: Any, b: Any, key: str) -> Iterator[str]:
    """Dotted keys of values that are not equal; keys of NOT_COMPARED are passed over."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            if not name.startswith(NOT_COMPARED):
                yield from different_values(a.get(name, "absent"), b.get(name, "absent"), f"{key}.{name}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from different_values(one, other, f"{key}.{place}")
    elif a != b and not (a != a and b != b):
        yield f"{key}: {a!r:.60} and {b!r:.60}"


if __name__ == "__main__":
    sys.exit(main())
