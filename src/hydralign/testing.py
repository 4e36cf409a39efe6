"""Small real parts for tests of rewards, loops and policies: no network, no chance, milliseconds.

`tiny_policy` is a whole policy with random weights; `ScriptedSampler` answers from a script; `LengthReward` and
`TokenShareReward` score without a model.
"""

from __future__ import annotations

from typing import Any

import torch

from hydralign.config.model import Form
from hydralign.generation.fake import ScriptedSampler
from hydralign.models.folders.from_scratch import make_model, train_tokenizer
from hydralign.models.forms.build import make_policy
from hydralign.models.policy import Policy
from hydralign.rewards.fake import LengthReward, TokenShareReward
from hydralign.types import Prompt

__all__ = [
    "LengthReward",
    "ScriptedSampler",
    "TokenShareReward",
    "tiny_model",
    "tiny_policy",
    "tiny_prompts",
    "tiny_tokenizer",
]

TEXT = "a small text of plain words, enough to learn a few merges from: this, that, and the other thing. "


def tiny_tokenizer(*, vocabulary: int = 300) -> Any:
    """A byte-level BPE tokenizer of 300 tokens with distinct `<eos>` and `<pad>`."""
    return train_tokenizer([TEXT] * 3, vocabulary=vocabulary)


def tiny_model(
    tokenizer: Any, *, family: str = "gpt2", layers: int = 2, width: int = 32, context: int = 64, seed: int = 0
) -> Any:
    """A gpt2 or llama model of about 40,000 random weights, spread out so that its predictions are not uniform."""
    model = make_model(tokenizer, family=family, layers=layers, width=width, heads=2, context=context, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def tiny_policy(
    *,
    family: str = "gpt2",
    form: Form | str | None = None,
    precision: str = "fp32",
    seed: int = 0,
    tokenizer: Any = None,
) -> Policy:
    """A policy in any form around `tiny_model`."""
    tokenizer = tokenizer or tiny_tokenizer()
    model = tiny_model(tokenizer, family=family, seed=seed)
    return make_policy(model, tokenizer, form=form, precision=precision, seed=seed)


def tiny_prompts(tokenizer: Any, *texts: str) -> list[Prompt]:
    """Prompts of the given texts, by default three of different lengths."""
    texts = texts or ("this", "a small text of", "the other thing and that")
    return [Prompt(text, tuple(tokenizer(text).input_ids)) for text in texts]
