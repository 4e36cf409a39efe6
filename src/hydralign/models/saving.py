"""Write and read policy folders: ordinary transformers or PEFT folders, the value head beside them.

A folder appears whole or not at all: everything is written to a temporary sibling, then moved into place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hydralign.errors import ModelError
from hydralign.models.heads import ValueHead

VALUE_HEAD_FILE = "value_head.safetensors"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def save_policy_folder(folder: Path, model: Any, tokenizer: Any, value_head: ValueHead) -> None:
    """Model (or adapter), tokenizer and value head; the model loads without this library."""
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_value_head(partial, value_head)


def save_value_head(folder: Path, value_head: ValueHead) -> None:
    """value_head.safetensors (weight [D], bias []) and a small JSON file that describes it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in value_head.state_dict().items()}
    save_file(state, folder / VALUE_HEAD_FILE)
    about = {"kind": "linear", "width": state["weight"].numel(), "reads": "state after the final norm"}
    (folder / "value_head.json").write_text(json.dumps(about, indent=2) + "\n")


def load_value_head(path: str, width: int) -> ValueHead:
    """The value head that lies in a model folder, or a new one at zero when there is none."""
    head = ValueHead(width)
    file = Path(path) / VALUE_HEAD_FILE
    if not file.exists():
        return head
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ModelError(
            f"{file} cannot be read ({error}): the value head is lost. Delete it to start at 0."
        ) from error
    if state.keys() != {"weight", "bias"} or state["weight"].shape != torch.Size([width]):
        shapes = {name: tuple(t.shape) for name, t in state.items()}
        raise ModelError(
            f"{file} holds {shapes}, but the model is {width} wide: it belongs to another model. "
            "Delete it to start from a value head at zero."
        )
    head.load_state_dict(state)
    return head
