"""The model that a section trains: loaded from its path, or made from scratch with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from hydralign.config.model import ModelConfig
from hydralign.models import train_tokenizer

Model = TypeVar("Model")


def load_or_make(
    model: ModelConfig,
    texts: Iterable[str],
    *,
    load: Callable[..., Model],
    make: Callable[..., Any],
    wrap: Callable[..., Model],
    device: torch.device,
    seed: int,
    **settings: Any,
) -> Model:
    """The model in its form: what `load` reads from its path, or `wrap` around the new one that `make` returns.

    A new model's tokenizer is trained on `texts`. Both `load` and `wrap` get `settings`, form, precision and seed.
    """
    settings |= {"form": model.form, "precision": model.precision, "seed": seed}
    if model.path is not None:
        return load(model.path, pad_token=model.pad_token, device=device, **settings)
    assert model.new is not None
    tokenizer = train_tokenizer(texts, vocabulary=model.new.vocabulary, family=model.new.family)
    fresh = make(tokenizer, **model.new.model_dump(exclude={"vocabulary"}), seed=seed)
    return wrap(fresh.to(device), tokenizer, **settings)
