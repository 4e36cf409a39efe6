"""Any policy folder as one plain model: adapters are merged into the base that they name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from hydralign.errors import ModelError
from hydralign.models.loading import load_model


def load_whole(path: str, *, pad_token: str | None = None, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """(model, tokenizer) of a model folder, a hub id, or a PEFT adapter folder whose base can be found.

    Raises as `load_model` does, and ModelError for an adapter that does not fit its base.
    """
    about = Path(path) / "adapter_config.json"
    if not about.exists():
        return load_model(path, pad_token=pad_token, device=device)
    base = json.loads(about.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"Adapter {path!r} names no base model: it is unknown what it adapts. Set base_model_name_or_path in its "
            "adapter_config.json."
        )
    model, tokenizer = load_model(base, pad_token=pad_token, device=device)
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a name that is about to be renamed there; nothing that a user could mend.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            merged = PeftModel.from_pretrained(model, path).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"Adapter {path!r} does not fit {base!r}: {str(error).splitlines()[0]} Name another base in its "
            "adapter_config.json."
        ) from error
    return merged, tokenizer
