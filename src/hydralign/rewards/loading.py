"""Loads a sequence-classification folder, and refuses one whose weights are not all there.

transformers fills missing weights with random numbers and only logs it; as a reward that is noise with a
confident face, so here it is an error. safetensors only, no code from the folder, fp32, eval mode, no gradients.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from hydralign.errors import ModelError
from hydralign.hub import describe_search, hub_access
from hydralign.models.load_errors import check_model_files, named_load_errors
from hydralign.models.load_report import require_whole_load
from hydralign.models.rope import rope_limit
from hydralign.models.tokenizers import read_tokenizer
from hydralign.models.weights import require_finite_weights, require_ids_have_rows


def check_classifier_folder(path: str | os.PathLike[str]) -> str | Path:
    """The folder, `~` expanded, or the hub id. Raises ModelError for a folder that is missing or incomplete."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        _require_files(folder)
        check_model_files(folder)
        return folder
    if folder.is_absolute() or str(path).startswith(("~", ".")) or str(path).count("/") > 1:
        raise ModelError(
            f"there is no folder {str(path)!r} (looked at {folder.absolute()}): no reward can be read from it. "
            "Correct the path."
        )
    return str(path)


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
    limits = [int(tokenizer.model_max_length)]
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin number positions from padding_idx + 1, so that part of the table is out of reach.
        tables = (m for n, m in model.named_modules() if n.endswith("position_embeddings"))
        offsets = [m.padding_idx + 1 for m in tables if isinstance(m, nn.Embedding) and m.padding_idx is not None]
        limits.append(positions - max(offsets, default=0))
    limit = rope_limit(model)
    return min(limits if limit is None else [*limits, limit])


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
