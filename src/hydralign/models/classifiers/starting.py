"""What a classifier in training starts from: a language model, an encoder, a classifier with its labels, an adapter.

Of a language model or an encoder the trunk is taken and the head is new; of a classifier the head is kept too.
Weights of the trunk are never random: what transformers would fill in silently is an error here. safetensors only,
no code from the folder; the network is used only when `path` is no local folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
)
from transformers.utils import logging

from hydralign.errors import ModelError
from hydralign.models.classifiers.labels import label_names
from hydralign.models.folders.from_scratch import name_outputs
from hydralign.models.folders.load_errors import loading
from hydralign.models.folders.load_report import head_names
from hydralign.models.folders.loading import check_folder, check_loaded, read_model
from hydralign.models.folders.merged import load_merged


def load_start(path: str, labels: Sequence[str], *, seed: int = 0) -> tuple[Any, Any]:
    """(classifier, tokenizer) with one output per label, in this order, from a folder or hub id; fp32.

    A classifier's own head is kept if it has these labels; the name of a single output is free if the folder gives it
    none. `seed` seeds a new head. An adapter is merged into the base that it names. Raises ModelError for a folder
    that cannot be started from.
    """
    return load_merged(path, _load, labels=labels, seed=seed)


def require_classifier_kind(config: Any, path: str) -> None:
    """Raise ModelError when transformers has no classifier of this config's architecture that reads one token."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"{path!r} is of type {config.model_type!r}: transformers has no classifier of it that could be read at a "
            "text's last or first token. Use a causal language model or an encoder."
        )


def last_layer(model: Any) -> nn.Linear:
    """The linear layer that makes the outputs: `score` of causal models, `classifier` or its end of encoders."""
    trunk = model.base_model_prefix + "."
    outside = [module for name, module in model.named_modules() if not name.startswith(trunk)]
    linear = [m for m in outside if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    if not linear:
        raise ModelError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs after its trunk: its "
            "head is of a kind that is not known here. Use an AutoModelForSequenceClassification model."
        )
    return linear[-1]


def _load(path: str, *, labels: Sequence[str], seed: int, tokenizer: str | None) -> tuple[Any, Any]:
    """Model with these outputs and tokenizer of a whole model's folder; the trunk complete, the head known.

    `tokenizer` is another folder to read the tokenizer from.
    """
    path = check_folder(path)
    way_out = "Name a language model, an encoder or a classifier with its tokenizer, saved by transformers."
    with loading(f"Model {path!r}", path, way_out), _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        own = _own_labels(config, labels, path)
        name_outputs(config, own or labels)
        model, encoder, report = read_model(
            AutoModelForSequenceClassification, path, way_out, tokenizer=tokenizer, config=config
        )
    if not own:
        _require_no_head(model, report, path)
    check_loaded(model, encoder, report, path, new_head=not own)
    if own:
        _reorder(model, own, labels)
    return model, encoder


def _own_labels(config: Any, labels: Sequence[str], path: str) -> list[str]:
    """The labels of the head in a classifier's folder, in its order; none for a trunk that wants a new head."""
    require_classifier_kind(config, path)
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return []
    own = label_names(config.id2label, repr(path))
    if own == ["LABEL_0"] and len(labels) == 1:
        return list(labels)
    if sorted(own) != sorted(labels):
        raise ModelError(
            f"{path!r} is a classifier with the labels {', '.join(map(repr, own))}, and {', '.join(map(repr, labels))} "
            "are to be learned: its head would be read under wrong names. Use its labels, or start from a language "
            "model or an encoder, which get a new head."
        )
    return own


def _reorder(model: Any, own: Sequence[str], labels: Sequence[str]) -> None:
    """Put the outputs, named `own`, into the order of `labels`."""
    order = [own.index(label) for label in labels]
    for parameter in last_layer(model).parameters():
        parameter.data = parameter.data[order]
    name_outputs(model.config, labels)


def _require_no_head(model: Any, report: Mapping[str, Any], path: str) -> None:
    """Raise ModelError when a head came from the folder, though it is no classifier's by its config."""
    brought = head_names(model) - set(report["missing_keys"])
    foreign = sorted(name for name in brought if not name.startswith(f"{model.base_model_prefix}."))
    if foreign:
        raise ModelError(
            f"{path!r} brings its own {', '.join(foreign)}, though its config does not say that it classifies texts: "
            "what those outputs mean is unknown. Name a language model or an encoder, or add "
            f"architectures: [{type(model).__name__}] and id2label to its config.json."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No table of missing weights from transformers: each is either expected or an error here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
