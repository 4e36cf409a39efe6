"""The shapes that are measured, and the arithmetic that their iterations are held against."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import T5Config

GEOMETRIES: dict[str, dict[str, int]] = {
    "S": {"layers": 12, "dim": 768, "heads": 12, "vocab": 50257, "q": 8, "r": 16, "batch": 16, "mini": 4},
    "L": {"layers": 8, "dim": 512, "heads": 8, "vocab": 50257, "q": 256, "r": 48, "batch": 8, "mini": 4},
    "T": {"layers": 6, "dim": 512, "heads": 8, "vocab": 32128, "q": 256, "r": 48, "batch": 8, "mini": 4},
}
"""S: short film reviews on GPT-2 small. L: summaries, prompts longer than answers. T: the same on T5 small, with an
encoder and a decoder of so many layers.
"""


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """Options for a named geometry and for every number of it."""
    parser.add_argument("--geometry", choices=GEOMETRIES, default="S")
    for name in GEOMETRIES["S"]:
        parser.add_argument(f"--{name}", type=int, help=f"in place of the geometry's own {name}")
    for name, value in {"epochs": 4, "iters": 3, "k": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)


def fill(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the geometry's numbers where none was given."""
    for name, value in GEOMETRIES[arguments.geometry].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def floor_gflop(layer: int, head: int, arguments: argparse.Namespace) -> float:
    """2 · weights · tokens of one hydra iteration, in 10⁹ operations, without attention and AdamW.

    `layer` and `head` are the weights of one layer's matrices and of the output head. Sampling reads every token but
    the last once; the reference branch runs once; every epoch costs the branch three times (forward, and two products
    backward) and the frozen head twice, on response positions. A fixed yardstick, no lower bound: layers count whole,
    though the last one's feed-forward needs response positions only.
    """
    a = arguments
    tokens, answers = a.batch * (a.q + a.r), a.batch * a.r
    sampling = a.layers * layer * (tokens - a.batch) + head * answers
    reference = a.k * layer * tokens + head * answers
    epochs = a.epochs * (3 * a.k * layer * tokens + 2 * head * answers)
    return 2 * (sampling + reference + epochs) / 1e9


def t5_config(*, layers: int, dim: int, heads: int, vocab: int, **_: int) -> T5Config:
    """The shape of T5's first version: a plain feed-forward block, tied embeddings."""
    return T5Config(
        vocab_size=vocab,
        num_layers=layers,
        d_model=dim,
        d_kv=dim // heads,
        num_heads=heads,
        d_ff=4 * dim,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=0,
        dropout_rate=0.0,
    )


def matrix_rate(size: int = 2048, runs: int = 9) -> float:
    """10⁹ operations per second of an fp32 matrix product of this size: the median of several."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e9


def matrices(module: Any) -> int:
    """Weights in the matrices of a module."""
    return sum(p.numel() for p in module.parameters() if p.dim() == 2)
