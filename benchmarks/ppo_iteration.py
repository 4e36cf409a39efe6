"""Time PPO iterations on a random-weight GPT-2 shape and print one JSON line.

    python benchmarks/ppo_iteration.py --form full --layers 12 --dim 768 --heads 12 --q 8 --r 16 --batch 16 --mini 4

Answers never end early, rewards are random numbers, the first iteration is not counted. `seconds` is the median of
whole iterations; `collect` and `update` are the medians of their two parts. `peak_mb` is the peak resident size,
`import_mb` what was resident after imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hydralign.config import FullForm, HydraForm, LoraForm
from hydralign.config.model import Form
from hydralign.loops.estimate import estimate
from hydralign.loops.update import make_optimizer, update
from hydralign.models import make_model, make_policy
from hydralign.rollout import collect
from hydralign.types import Prompt, SamplingPlan


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=["full", "lora", "hydra"], default="full")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    sizes = {"layers": 12, "dim": 768, "heads": 12, "vocab": 50257, "q": 8, "r": 16, "batch": 16, "mini": 4}
    for name, value in {**sizes, "epochs": 4, "iters": 3, "k": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    import_mb = peak_mb()
    print(json.dumps({**measure(arguments), "import_mb": import_mb, "peak_mb": peak_mb(), "args": vars(arguments)}))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of an iteration and of its parts, and the optimizer steps that each took."""
    vocabulary = {str(i): i for i in range(arguments.vocab)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    model = make_model(
        tokenizer, family="gpt2", layers=arguments.layers, width=arguments.dim, heads=arguments.heads, context=1024
    )
    forms: dict[str, Form] = {"full": FullForm(), "lora": LoraForm(), "hydra": HydraForm(unfrozen_layers=arguments.k)}
    form = forms[arguments.form]
    policy = make_policy(model, tokenizer, form=form, precision=arguments.precision)
    optimizer = make_optimizer(policy.trained(), learning_rate=1.4e-5)
    plan = SamplingPlan(max_new_tokens=arguments.r, min_new_tokens=arguments.r)
    generator = torch.Generator().manual_seed(0)
    times: list[tuple[float, float]] = []
    steps = 0.0
    for iteration in range(arguments.iters + 1):
        ids = torch.randint(1, arguments.vocab, (arguments.batch, arguments.q), generator=generator).tolist()
        prompts = [Prompt("", tuple(row)) for row in ids]
        started = time.perf_counter()
        experience = collect(policy, prompts, random_scores, plan.at(iteration), micro_rows=arguments.mini)
        collected = time.perf_counter()
        stats = update(
            policy,
            optimizer,
            experience,
            estimate(experience),
            epochs=arguments.epochs,
            minibatches=arguments.batch // arguments.mini,
            micro_rows=arguments.mini,
            iteration=iteration,
        )
        times.append((collected - started, time.perf_counter() - collected))
        steps = stats["ppo/optimizer_steps"]
    counted = times[1:]
    return {
        "seconds": statistics.median(a + b for a, b in counted),
        "collect": statistics.median(a for a, _ in counted),
        "update": statistics.median(b for _, b in counted),
        "optimizer_steps": steps,
    }


def random_scores(completions: list[str]) -> list[float]:
    """Scores whose cost is nothing."""
    return torch.randn(len(completions)).tolist()


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
