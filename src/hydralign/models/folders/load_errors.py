"""Failures of third-party loading code as errors that name the folder, the file, the cause and a way out.

transformers, tokenizers, PEFT and safetensors raise whatever their parsing meets, down to a bare Exception, so a list
of types is never complete: every Exception inside `named_load_errors` becomes a ModelError, except our own and memory
that ran out. `check_model_files` refuses beforehand what those libraries would misunderstand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from hydralign.errors import HydralignError, ModelError
from hydralign.hub import describe_search, hub_access
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.folders.weight_files import require_float_weights, weight_files

JSON_FILES = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "n_embd", "n_layer", "n_head")
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Names of the longest sequence in tokens; null means no limit."""


@contextmanager
def named_load_errors(what: str, way_out: str) -> Iterator[None]:
    """Turn every failure inside into a ModelError: `what`, the cause in one line, `way_out`.

    Our own errors, memory that ran out and interruptions pass as they are.
    """
    try:
        yield
    except HydralignError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{what}: {cause_of(error)} {way_out}") from error


@contextmanager
def loading(what: str, path: str, way_out: str) -> Iterator[None]:
    """Load `what` from the folder or hub id `path` within the block: `hub_access`, and `named_load_errors` that say
    where it was looked for.
    """
    with hub_access(path, "model"), named_load_errors(f"{what} could not be loaded{describe_search(path)}", way_out):
        yield


def cause_of(error: Exception) -> str:
    """The error's class and the first line that says something, as one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Strict configs put the field into the first line, and what is wrong with it into the second.
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or ["no message"])[0]
    first = first[:300].split(" Install it with ")[0].rstrip(" .")
    return f"{type(error).__name__}: {first}."


def check_model_files(folder: Path) -> None:
    """Raise ModelError when a local model folder's own files say that it cannot be loaded.

    JSON files that are damaged or hold no object, quantised weights, an architecture that is code in the folder,
    shards that the index names and that are missing, damaged weights, and a tokenizer that only SentencePiece can read.
    """
    with named_load_errors(f"Model folder {str(folder)!r} cannot be read", "Check the path and its permissions."):
        contents = {name: _read_object(folder / name) for name in JSON_FILES if (folder / name).is_file()}
        index = contents.get("model.safetensors.index.json")
        if index is not None:
            _check_shards(folder, index)
        if "config.json" in contents:
            check_config(contents["config.json"], str(folder))
            for file in weight_files(folder):
                require_float_weights(file)
        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            _check_sentencepiece(folder)


def check_config(config: Any, path: str) -> None:
    """Raise ModelError when the contents of a config.json describe something that cannot be trained from."""
    found = [config[name] for name in ("quantization_config", "compression_config") if config.get(name) is not None]
    if found:
        quantised = found[0]
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelError(
            f"Model {path!r} is quantised ({method or 'quantization_config in its config.json'}): its weights are "
            "rounded to a few bits and cannot be trained or merged. Name the unquantised model that it was made from."
        )
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelError(
            f"Model {path!r} could not be loaded: config.json has architectures={names!r}, which must be a list of "
            "names of classes: whether it writes texts or scores them is unknown. Restore its config.json."
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(
            f"config.json of {path!r} has model_type={kind!r}: without it transformers cannot tell which architecture "
            "to build. Save the model again with save_pretrained, or add its model_type."
        )
    if kind not in CONFIG_MAPPING and config.get("auto_map"):
        raise ModelError(
            f"Model {path!r} could not be loaded: its architecture {kind!r} is code in its own folder (auto_map), "
            "which is not run. Use a model whose architecture is part of transformers."
        )
    _check_numbers(config, path)


def _check_numbers(config: dict[str, Any], path: str) -> None:
    """Raise ModelError for a size that is no positive whole number, or a setting that is NaN or infinite."""
    way_out = "Save the model again with save_pretrained, or restore its config.json."
    for name, value in config.items():
        if name not in (*SIZES, *CONTEXTS) or (value is None and name in CONTEXTS):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(
                f"Model {path!r} could not be loaded: config.json has {name}={value!r}, which must be a whole number "
                f"of at least 1. {way_out}"
            )
    for name, value in config.items():
        # transformers writes such numbers as {"__float__": "NaN"}; limits (of Mamba's time steps) are lists.
        number = value.get("__float__", 0.0) if isinstance(value, dict) else value
        if number == "NaN" or (isinstance(number, float) and not math.isfinite(number)):
            raise ModelError(
                f"Model {path!r} could not be loaded: config.json has {name}={number}, which is no finite number: its "
                f"outputs would be NaN. {way_out}"
            )
        if name == "text_config" and isinstance(value, dict):
            _check_numbers(value, path)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file} could not be loaded ({cause_of(error)}): the model folder is damaged. Save or download it again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{file} could not be loaded: it holds a {type(content).__name__} where an object with named settings is "
            "needed. Save or download the model again."
        )
    return content


def _check_shards(folder: Path, index: dict[str, Any]) -> None:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(
            f"{folder / 'model.safetensors.index.json'} could not be loaded: it has no weight_map, so which file holds "
            "which weight is unknown. Save or download the model again."
        )
    missing = sorted({name for name in shards.values() if not (folder / name).is_file()})
    if missing:
        raise ModelError(
            f"Model folder {str(folder)!r} lacks {', '.join(missing[:4])} ({len(missing)} of "
            f"{len(set(shards.values()))} weight files that its index names): the model could not be loaded. "
            "Download the missing files."
        )


def _check_sentencepiece(folder: Path) -> None:
    if find_spec("sentencepiece") is None or find_spec("google") is None:
        raise ModelError(
            f"The tokenizer of {str(folder)!r} could not be loaded: it lies there as a SentencePiece model "
            "(tokenizer.model) only, and the packages sentencepiece and protobuf that read it are not both installed. "
            "Name a folder that has a tokenizer.json, or install both."
        )
