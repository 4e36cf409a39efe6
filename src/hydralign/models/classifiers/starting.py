"""What a scorer starts from: a language model, an encoder, a classifier with the same labels, or an adapter.

Of a language model or an encoder the trunk is taken and the head is new; of a classifier the head is kept too.
Weights of the trunk are never random: what transformers would fill in silently is an error here. safetensors only,
no code from the folder; the network is used only when `path` is no local folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from hydralign.hub import describe_search, hub_access
from hydralign.models.classifiers.labels import label_names
from hydralign.models.folders.from_scratch import name_outputs
from hydralign.models.folders.load_errors import named_load_errors
from hydralign.models.folders.load_report import require_whole_load
from hydralign.models.folders.loading import check_folder, own_tokenizer
from hydralign.models.folders.merged import adapter_config_of, base_path_of, merged
from hydralign.models.folders.tokenizers import read_tokenizer
from hydralign.models.folders.weights import require_finite_weights, require_ids_have_rows


def load_start(path: str, labels: Sequence[str], *, seed: int = 0) -> tuple[Any, Any]:
    """(classifier, tokenizer) with one output per label, in this order, from a folder or hub id; fp32.

    A classifier's own head is kept if it has these labels; the name of a single output is free if the folder gives it
    none. `seed` seeds a new head. An adapter is merged into the base that it names. Raises ModelError for a folder
    that cannot be started from.
    """
    where = check_folder(path)
    adapter = adapter_config_of(where)
    if adapter is None:
        return _load(where, labels, seed)
    model, tokenizer = _load(base_path_of(adapter, path), labels, seed, own_tokenizer(where))
    return merged(model, adapter, where), tokenizer


def require_classifier_kind(config: Any, path: str) -> None:
    """Raise ModelError when transformers has no classifier of this config's architecture that reads one token."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"{path!r} is of type {config.model_type!r}: transformers has no classifier of it that could be read at a "
            "text's last or first token. Use a causal language model or an encoder."
        )


def head_names(model: Any) -> set[str]:
    """Names of the parameters that a trunk cannot bring along: those outside it, and its pooler's."""
    trunk = model.base_model_prefix + "."
    return {name for name, _ in model.named_parameters() if not name.startswith(trunk) or ".pooler." in name}


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


def _load(path: str, labels: Sequence[str], seed: int, tokenizer_of: str | None = None) -> tuple[Any, Any]:
    """Model with these outputs and tokenizer of a whole model's folder; the trunk complete, the head known.

    `tokenizer_of` is another folder to read the tokenizer from.
    """
    taken_for = describe_search(path)
    way_out = "Name a language model, an encoder or a classifier with its tokenizer, saved by transformers."
    named = named_load_errors(f"{path!r} could not be loaded as a classifier{taken_for}", way_out)
    with hub_access(path, "model"), named, _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        own = _own_labels(config, labels, path)
        name_outputs(config, own or labels)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
        tokenizer = read_tokenizer(tokenizer_of or path)
    _check_weights(model, set(report["missing_keys"]), bool(own), path)
    # A language model's own head is left out on purpose.
    require_whole_load(model, report, path, f"Model {path!r}", say_extras=False)
    require_finite_weights(model, f"Model {path!r}")
    require_ids_have_rows(tokenizer, model, f"Model {path!r}")
    if own:
        _reorder(model, own, labels)
    return model, tokenizer


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


def _check_weights(model: Any, missing: set[str], kept: bool, path: str) -> None:
    """Raise ModelError unless exactly the trunk's weights, or all of them, came from the folder."""
    head = head_names(model)
    lost = sorted(missing if kept else missing - head)
    if lost:
        shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
        raise ModelError(
            f"{path!r} lacks the weights {shown}: they would be random numbers. Name a folder that holds the whole "
            "model."
        )
    trunk = model.base_model_prefix + "."
    foreign = sorted(name for name in head - missing if not name.startswith(trunk))
    if foreign and not kept:
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
