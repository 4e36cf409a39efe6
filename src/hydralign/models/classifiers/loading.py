"""Loads a sequence-classification folder, and refuses one whose weights are not all there.

transformers fills missing weights with random numbers and only logs it; as a reward that is noise with a
confident face, so here it is an error. safetensors only, no code from the folder, fp32, eval mode, no gradients.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from hydralign.errors import ModelError
from hydralign.hub import describe_search, hub_access
from hydralign.models.backbones.rope import rope_limit
from hydralign.models.folders.load_errors import check_model_files, named_load_errors
from hydralign.models.folders.load_report import require_whole_load
from hydralign.models.folders.loading import find_folder
from hydralign.models.folders.tokenizers import read_tokenizer, tokenizer_limit
from hydralign.models.folders.weights import require_finite_weights, require_ids_have_rows


def check_classifier_folder(path: str | os.PathLike[str]) -> str | Path:
    """The folder, `~` expanded, or the hub id. Raises ModelError for a folder that is missing or incomplete."""
    folder = find_folder(str(path))
    if folder is None:
        return str(path)
    _require_files(folder)
    check_model_files(folder)
    _check_settings(folder)
    return folder


def load_classifier(
    path: str | os.PathLike[str], device: torch.device | str
) -> tuple[nn.Module, Any, Mapping[str, Any]]:
    """Model, tokenizer and the raw contents of config.json of a folder or hub id. Raises ModelError."""
    path = check_classifier_folder(path)
    way_out = (
        "It cannot give a reward. Give a folder or hub id that AutoModelForSequenceClassification loads from "
        "safetensors."
    )
    what = f"{str(path)!r} does not load as a sequence classifier{describe_search(path)}"
    with hub_access(path, "model"), named_load_errors(what, way_out):
        raw, _ = PretrainedConfig.get_config_dict(path)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        tokenizer = read_tokenizer(str(path))
    missing = sorted(report["missing_keys"])
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ModelError(
            f"{str(path)!r} lacks the weights {shown}: they would be random numbers, and so would the reward. "
            "Give a model that was trained as a sequence classifier and saved with its head."
        )
    require_whole_load(model, report, path, f"Classifier {str(path)!r}")
    require_finite_weights(model, f"Classifier {str(path)!r}")
    require_ids_have_rows(tokenizer, model, f"Classifier {str(path)!r}")
    return model.to(device).eval().requires_grad_(False), tokenizer, raw


def longest_text(model: nn.Module, tokenizer: Any) -> int:
    """Most tokens that the model can read: the least of its position table, the length up to which its rotary
    positions are the same in any batch, and the tokenizer's own limit.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [tokenizer_limit(tokenizer.model_max_length, "The tokenizer")]
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin number positions from padding_idx + 1, so that part of the table is out of reach.
        tables = (m for n, m in model.named_modules() if n.endswith("position_embeddings"))
        offsets = [m.padding_idx + 1 for m in tables if isinstance(m, nn.Embedding) and m.padding_idx is not None]
        limits.append(positions - max(offsets, default=0))
    limit = rope_limit(model)
    return min(limits if limit is None else [*limits, limit])


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


def _check_settings(folder: Path) -> None:
    """Raise ModelError for a pad id or a longest text, as the folder's files have them, that cannot be."""
    settings = {
        name: json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        for name in ("config.json", "tokenizer_config.json")
    }
    config = settings["config.json"]
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for part in (config, text):
        if part.get("pad_token_id") is not None:
            require_pad_row(part["pad_token_id"], text.get("vocab_size"))
    tokenizer_limit(settings["tokenizer_config.json"].get("model_max_length"), f"The tokenizer in {str(folder)!r}")


def _require_files(folder: Path) -> None:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{str(folder)!r} is a PEFT adapter: a reward needs the whole classifier with its head. "
            "Merge it into its base (merge_and_unload) and save the result."
        )
    if not (folder / "config.json").exists():
        raise ModelError(f"{str(folder)!r} has no config.json: it is no model folder. Correct the path.")
    if not any(folder.glob("*.safetensors")):
        others = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")]
        hint = f" Convert {others[0]} with save_pretrained; pickles are not read." if others else ""
        raise ModelError(
            f"{str(folder)!r} has no model.safetensors: without weights the reward would be random. "
            f"Complete the folder.{hint}"
        )
