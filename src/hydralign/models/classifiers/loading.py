"""Loads a sequence-classification folder, and refuses one whose weights are not all there.

transformers fills missing weights with random numbers and only logs it; as a reward that is noise with a
confident face, so here it is an error. safetensors only, no code from the folder, fp32, eval mode, no gradients.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from hydralign.errors import ModelError
from hydralign.models.folders.load_errors import loading
from hydralign.models.folders.loading import check_folder, check_loaded, context_of, read_model
from hydralign.models.folders.tokenizers import tokenizer_limit


def load_classifier(
    path: str | os.PathLike[str], device: torch.device | str
) -> tuple[nn.Module, Any, Mapping[str, Any]]:
    """Model, tokenizer and the raw contents of config.json of a folder or hub id. Raises ModelError."""
    path = check_folder(os.fspath(path), whole=True)
    way_out = (
        "It cannot give a reward. Give a folder or hub id that AutoModelForSequenceClassification loads from "
        "safetensors."
    )
    with loading(f"Model {path!r}", path, way_out):
        raw, _ = PretrainedConfig.get_config_dict(path)
        require_pad_rows(raw)
        model, tokenizer, report = read_model(AutoModelForSequenceClassification, path, way_out)
    check_loaded(model, tokenizer, report, path)
    return model.to(device).eval().requires_grad_(False), tokenizer, raw


def longest_text(model: nn.Module, tokenizer: Any) -> int:
    """Most tokens that the model can read: the lesser of its context, as far as its position table is within reach, and
    the tokenizer's own limit.
    """
    # RoBERTa and its kin number positions from padding_idx + 1, so that part of the table is out of reach.
    tables = (m for n, m in model.named_modules() if n.endswith("position_embeddings"))
    offsets = [m.padding_idx + 1 for m in tables if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    limit = tokenizer_limit(tokenizer.model_max_length, "The tokenizer")
    return min(limit, context_of(model) - max(offsets, default=0))


def require_pad_row(pad_id: Any, rows: Any) -> int:
    """The pad id of a model with so many embedding `rows` (None where that is unknown).

    Raises ModelError for an id without a row, such as the -1 of old Llama configs.
    """
    is_id = isinstance(pad_id, int) and not isinstance(pad_id, bool)
    if not is_id or pad_id < 0 or (isinstance(rows, int) and pad_id >= rows):
        counted = f" (it has {rows:,} embedding rows)" if isinstance(rows, int) else ""
        raise ModelError(
            f"the config has pad_token_id={pad_id!r:.80}, which is no token of the model{counted}: texts of unequal "
            "length could not be scored together. Set pad_token_id in its config.json to the id of a padding token."
        )
    return int(pad_id)


def require_pad_rows(raw: Mapping[str, Any]) -> None:
    """`require_pad_row` for every pad id in the contents of a config.json."""
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    for part in (raw, text):
        if part.get("pad_token_id") is not None:
            require_pad_row(part["pad_token_id"], text.get("vocab_size"))
