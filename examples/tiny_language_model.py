"""Train a small language model from scratch by plain next-token prediction, and save it as a transformers folder.

    python examples/tiny_language_model.py --data reviews.jsonl.gz --output out/tiny-lm --minutes 5

Texts are joined end to end with the end-of-sequence token between them and cut into windows; nothing is held apart
inside a window. That is enough for a base model to play with, and no more.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydralign.config import DataConfig, SourceConfig
from hydralign.config.data import NoSplit
from hydralign.data import training_texts
from hydralign.models import make_model, train_tokenizer


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file with a `text` column")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--context", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=32, help="windows per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()

    source = SourceConfig(source=arguments.data, held_out=NoSplit(by="none"))
    texts = [text.replace("<br />", "\n") for text in training_texts(DataConfig(demonstrations=source))]
    tokenizer = train_tokenizer(texts[:5000], vocabulary=arguments.vocabulary)
    model = make_model(
        tokenizer,
        family="gpt2",
        layers=arguments.layers,
        width=arguments.width,
        heads=arguments.heads,
        context=arguments.context,
    )
    windows = pack(texts, tokenizer, arguments.context)
    print(f"{len(texts):,} texts, {windows.numel():,} tokens, {model.num_parameters():,} parameters")
    train(model, windows, minutes=arguments.minutes, rows=arguments.rows, peak=arguments.learning_rate)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"saved to {arguments.output}")


def pack(texts: list[str], tokenizer: Any, context: int) -> Tensor:
    """windows_NT: all texts end to end, an end-of-sequence token after each; the last partial window is left out."""
    ids = [i for text in tokenizer(texts).input_ids for i in (*text, tokenizer.eos_token_id)]
    whole = len(ids) // context * context
    return torch.tensor(ids[:whole]).view(-1, context)


def train(model: Any, windows: Tensor, *, minutes: float, rows: int, peak: float) -> None:
    """AdamW with a short warm-up and a cosine to zero over the given time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    started = time.monotonic()
    recent: list[float] = []
    for step, batch in enumerate(batches(windows, rows)):
        done = (time.monotonic() - started) / (60 * minutes)
        if done >= 1:
            break
        rate = peak * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], loss.item()]
        if step % 100 == 0:
            print(f"step {step}  loss {sum(recent) / len(recent):.3f}  {100 * done:.0f} %", flush=True)


def batches(windows: Tensor, rows: int) -> Iterator[Tensor]:
    """Endless shuffled batches."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from windows[torch.randperm(len(windows), generator=generator)].split(rows)


if __name__ == "__main__":
    main()
