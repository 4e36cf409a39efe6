"""What the headers of a model's safetensors files say: damage, and the number format of every tensor.

Only headers are read, so a check costs the same for a small and a large model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hydralign.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16")
ATTENTION_MASKS = re.compile(r"(^|[._])(attn|attention|crossattention)\.(masked_)?bias$")
"""Masks that older versions of transformers saved among the weights; they are no biases."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model of a folder: one, or the shards that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(shards.values()))]


def require_float_weights(file: Path, parameters: Collection[str] = ()) -> None:
    """Raise ModelError naming the first weight of a safetensors file that is stored in whole numbers or 8 bits.

    Weights are tensors called `weight` or `bias`, and those called like one of `parameters`. Other tensors, such as
    position ids, may be integers. Raises ModelError for a damaged file too.
    """
    for name, kind in sorted(_number_formats(file).items()):
        is_weight = name.endswith(("weight", "bias")) and not ATTENTION_MASKS.search(name)
        if kind in FLOATS or not (kind.startswith("F") or is_weight or name in parameters):
            continue
        raise ModelError(
            f"{file}: the weight {name} is stored as {kind}, not as floating-point numbers of 16 bits or more: it is "
            "quantised or damaged, and would be read as plain numbers without their scales. Name the unquantised "
            "model that it was made from, or save the weights again in F32, F16 or BF16."
        )


def _number_formats(file: Path) -> dict[str, str]:
    """The format of each tensor as safetensors calls it, such as F32 or I8."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} could not be loaded ({type(error).__name__}: {error}): the file is damaged or only partly there, "
            "so its weights are lost. Save or download it again, or name another model."
        ) from error
