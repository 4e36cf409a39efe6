"""Whether the weights of a folder are those of the model that its config.json describes.

transformers logs weights of other sizes and weights without a place, and goes on with what is left. Here the first
are an error, and so are the second where they belong to the model's body: a network without half of its layers is
another one. What stands outside the body, such as another library's value head, is named in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hydralign.errors import ModelError
from hydralign.models.folders.weight_files import ATTENTION_MASKS, require_float_weights, weight_files
from hydralign.progress import say

COMPUTED = re.compile(r"(inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|_cached|alibi)$")
"""Buffers that older versions of transformers saved and newer ones compute."""
OTHER_PARTS = re.compile(r"(^|[._])(pooler|vis|vision|visual|image|audio|speech|video|multi_?modal|mtp)[._]")
"""Parts of published models that a language model or a classifier of texts does without."""


def require_whole_load(
    model: Any, report: Mapping[str, Any], path: str, subject: str, *, new_head: bool = False
) -> None:
    """Raise ModelError unless every weight of `model` came from the folder or hub id `path`, and every weight of the
    body there is in it, as it was saved.

    `report` is what transformers gives with `output_loading_info` and `ignore_mismatched_sizes`. With `new_head` the
    head may be missing there; else weights outside the body that are left out are named.
    """
    missing = sorted(set(report["missing_keys"]) - (head_names(model) if new_head else set()))
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ModelError(
            f"{subject} lacks the weights {', '.join(missing[:4])}{more}: they would be random numbers, and so would "
            "its outputs. Name a folder that holds the whole model, saved with its head."
        )
    _require_sizes(report.get("mismatched_keys", ()), subject)
    unused = [name for name in sorted(report.get("unexpected_keys", ())) if not _is_computed(name)]
    lost = [name for name in unused if _in_body(name, model)]
    if lost:
        raise ModelError(
            f"{subject} holds {len(lost)} weights for which its config.json has no place (first: {lost[0]}): without "
            "them it would be another model than the one that was saved. Restore the config.json that was saved with "
            "the weights (number of layers, kind of model), or save the model again with save_pretrained."
        )
    if unused and not new_head:
        say(f"{subject}: {len(unused)} weights outside its body are left out (first: {unused[0]}).")
    prefix = f"{model.base_model_prefix}."
    names = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    for file in weight_files(_folder_of(path)):
        require_float_weights(file, names | {f"{prefix}{name}" for name in names})


def head_names(model: Any) -> set[str]:
    """Names of the parameters that a trunk cannot bring along: those outside it, and its pooler's."""
    trunk = f"{model.base_model_prefix}."
    return {name for name, _ in model.named_parameters() if not name.startswith(trunk) or ".pooler." in name}


def _require_sizes(mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]], subject: str) -> None:
    if not mismatched:
        return
    name, saved, wanted = min(mismatched, key=lambda one: one[0])
    more = f" (and {len(mismatched) - 1} more weights differ)" if len(mismatched) > 1 else ""
    raise ModelError(
        f"{subject} could not be loaded: the weight {name} has the shape {_shape(saved)} in its file, and "
        f"{_shape(wanted)} by its config.json{more}: it would start at random. Restore the config.json that was saved "
        "with the weights, or save or download the model again."
    )


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "of a single number"


def _is_computed(name: str) -> bool:
    return bool(COMPUTED.search(name) or ATTENTION_MASKS.search(name))


def _in_body(name: str, model: Any) -> bool:
    """Whether a weight without a place belongs to the network under the head, by its name."""
    body, prefix = model.base_model, f"{model.base_model_prefix}."
    parts = {part for part, _ in body.named_children()} if body is not model else set()
    return (name.startswith(prefix) or name.split(".")[0] in parts) and not OTHER_PARTS.search(name)


def _folder_of(path: str) -> Path:
    """The folder itself, or where the hub's cache holds the files that were just loaded."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    config = cached_file(path, "config.json", local_files_only=True)
    return Path(config).parent if config else folder
