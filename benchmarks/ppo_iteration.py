"""Time PPO iterations on random weights and print one JSON line.

    python benchmarks/ppo_iteration.py --form hydra --geometry L
    python benchmarks/ppo_iteration.py --form hydra --geometry T --family t5
    python benchmarks/ppo_iteration.py --form full --layers 12 --dim 768 --heads 12 --q 8 --r 16 --batch 16 --mini 4

Answers never end early, rewards are random numbers, the first iteration is not counted. `seconds` is the median of
whole iterations, `share` what each phase takes of it. `floor_gflop` is the arithmetic of a hydra iteration of this
shape (benchmarks/geometry.py), `times_floor` the seconds over the time which that takes at `gflops`, the rate of a
2048³ fp32 product, measured before and after the iterations; both are left out for an encoder–decoder. `peak_mb` is
the peak resident size, `import_mb` what was resident after imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from geometry import add_geometry, fill, floor_gflop, matrices, matrix_rate, t5_config
from separate import FullSizeReward, separate_policy
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from hydralign.config import FullForm, HydraForm, LoraForm
from hydralign.config.model import Form
from hydralign.encoder_input import mark_for_encoder
from hydralign.generation.sampler import sample
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import update
from hydralign.models import Policy, make_model, make_policy
from hydralign.models.backbones.slicing import layers_of
from hydralign.rollout import collect
from hydralign.training.optimizer import make_optimizer
from hydralign.types import Prompt, Rollout, SamplingParams

LEARNING_RATE = 1.4e-5


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=["full", "lora", "hydra", "separate"], default="hydra")
    parser.add_argument("--value", choices=["head", "branch"], default="head", help="of the hydra form")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--family", choices=["gpt2", "llama", "t5"], default="gpt2")
    parser.add_argument("--decoder-only", action="store_true", help="of an encoder–decoder adapt the decoder alone")
    add_geometry(parser)
    arguments = fill(parser.parse_args())
    import_mb = peak_mb()
    measured = measure(arguments)
    print(json.dumps({**measured, "import_mb": import_mb, "peak_mb": peak_mb(), "args": vars(arguments)}))


class Clock:
    """Seconds by phase, of one iteration at a time."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []

    def begin(self) -> None:
        """A new iteration."""
        self.iterations.append(defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what the block takes to one phase of the iteration."""
        started = time.perf_counter()
        yield
        self.iterations[-1][name] += time.perf_counter() - started

    def medians(self) -> dict[str, float]:
        """Of all iterations but the first."""
        counted = self.iterations[1:]
        return {name: statistics.median(i[name] for i in counted) for name in counted[0]}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of an iteration, the share of each phase, optimizer steps and use of the trunk."""
    a = arguments
    rate = matrix_rate()
    policy, reward = build(arguments)
    optimizer = make_optimizer(policy.trained(), learning_rate=LEARNING_RATE)
    clock, stats = Clock(), dict[str, float]()
    _time_optimizer(optimizer, clock)

    def sampler(policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        with clock.phase("sample"):
            rollout = sample(policy, prompts, params)
        if reward is not None:
            with clock.phase("score"):
                for index in torch.arange(a.batch).split(a.mini):
                    reward.scores(rollout.rows.select(index))
        return rollout

    plan = SamplingParams(max_new_tokens=a.r, min_new_tokens=a.r)
    generator = torch.Generator().manual_seed(0)
    for iteration in range(a.iters + 1):
        ids = torch.randint(1, a.vocab, (a.batch, a.q), generator=generator).tolist()
        prompts = [Prompt("", tuple(row)) for row in ids]
        clock.begin()
        with clock.phase("total"):
            with clock.phase("collect"):
                experience = collect(
                    policy, prompts, random_scores, plan.at(iteration), micro_batch_size=a.mini, sampler=sampler
                )
            advantages = estimate(experience)
            with clock.phase("update"):
                stats = update(
                    policy,
                    optimizer,
                    experience,
                    advantages,
                    epochs=a.epochs,
                    minibatches=a.batch // a.mini,
                    micro_batch_size=a.mini,
                    iteration=iteration,
                )
    return _told(policy, clock.medians(), stats, arguments, rate=(rate + matrix_rate()) / 2)


def _told(
    policy: Policy, seconds: dict[str, float], stats: dict[str, float], arguments: argparse.Namespace, *, rate: float
) -> dict[str, Any]:
    total = seconds["total"]
    model = policy.model
    head = model.get_output_embeddings().weight.numel()
    floor = None
    if arguments.family != "t5":
        floor = floor_gflop(matrices(layers_of(model.base_model)[0]), head, arguments)
    phases = {
        "sampling": seconds["sample"],
        "scoring": seconds.get("score", 0.0),
        "reading": seconds["collect"] - seconds["sample"] - seconds.get("score", 0.0),
        "gradients": seconds["update"] - seconds["optimizer"],
        "optimizer": seconds["optimizer"],
    }
    return {
        "seconds": round(total, 4),
        "share": {name: round(value / total, 3) for name, value in phases.items()},
        "optimizer_steps": stats["ppo/optimizer_steps"],
        "trunk_passes_per_token": stats.get("trunk_passes_per_token"),
        "trunk_pad_share": stats.get("trunk_pad_share"),
        "floor_gflop": floor and round(floor, 1),
        "gflops": round(rate, 1),
        "times_floor": floor and round(total / (floor / rate), 3),
    }


def build(arguments: argparse.Namespace) -> tuple[Policy, FullSizeReward | None]:
    """The policy in its form, with random weights, and the reward model of the four-model form."""
    a = arguments
    vocabulary = {str(i): i for i in range(a.vocab)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    if a.family == "t5":
        mark_for_encoder(tokenizer)
        model = T5ForConditionalGeneration(t5_config(layers=a.layers, dim=a.dim, heads=a.heads, vocab=a.vocab))
    else:
        model = make_model(tokenizer, family=a.family, layers=a.layers, width=a.dim, heads=a.heads, context=1024)
    if a.form == "separate":
        return separate_policy(model, tokenizer, precision=a.dtype), FullSizeReward(model)
    forms: dict[str, Form] = {
        "full": FullForm(),
        "lora": LoraForm(rank=32, alpha=32) if a.family == "t5" else LoraForm(),
        "hydra": HydraForm(unfrozen_layers=a.k, value=a.value),
    }
    form = forms[a.form].model_copy(update={"decoder_only": True} if a.decoder_only else {})
    return make_policy(model, tokenizer, form=form, precision=a.dtype), None


def _time_optimizer(optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Let the optimizer's own steps be a phase of the clock."""
    started: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: started.append(time.perf_counter()))

    def stop(*_: Any) -> None:
        clock.iterations[-1]["optimizer"] += time.perf_counter() - started.pop()

    optimizer.register_step_post_hook(stop)


def random_scores(completions: list[str]) -> list[float]:
    """Scores whose cost is nothing."""
    return torch.randn(len(completions)).tolist()


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    # Not getrusage: on Linux its peak begins at that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
