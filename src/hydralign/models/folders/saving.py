"""Write and read policy folders: ordinary transformers or PEFT folders, the value head beside them.

A folder appears whole or not at all (`whole_folder`).
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hydralign.errors import ConfigError, ModelError, RunFolderError
from hydralign.files import whole_folder
from hydralign.models.folders.weight_files import require_float_weights
from hydralign.models.folders.weights import require_finite_tensors
from hydralign.models.heads.value import ValueHead

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_BRANCH_FILE = "value_branch.safetensors"


def model_folder(folder: str | os.PathLike[str]) -> AbstractContextManager[Path]:
    """A temporary folder that takes the place of the model folder `folder` when the block ends without an error.

    Raises as `require_replaceable` and `whole_folder` do.
    """
    return whole_folder(require_replaceable(folder))


def require_replaceable(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that a model may take the place of: a new one, an empty one, or another model's.

    Raises ConfigError for what names no folder, RunFolderError where something else would be deleted.
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ConfigError(f"folder={folder!r:.80} names no folder: the model would be lost. Give the path of one.")
    place = Path(os.path.abspath(Path(folder).expanduser()))
    if place.exists() and not place.is_dir():
        raise RunFolderError(f"{str(place)!r} is a file: a model is saved as a folder. Name another.")
    held = sorted(part.name for part in place.iterdir()) if place.is_dir() else []
    is_model = {"config.json", "adapter_config.json"} & set(held)
    if Path.cwd().is_relative_to(place) or (held and not is_model):
        shown = ", ".join(held[:3]) or "the working folder"
        raise RunFolderError(
            f"{str(place)!r} holds {shown}: a saved model takes the place of the whole folder, so that would "
            "be deleted. Name another, which need not exist."
        )
    return place


def save_model(model: Any, folder: Path) -> None:
    """The model as transformers saves it, all weights in fp32, also those that are held in bf16."""
    wide: dict[int, torch.Tensor] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.dtype == torch.bfloat16:
            # Tied weights stay one tensor, so that they are saved once.
            state[name] = wide.setdefault(tensor.data_ptr(), tensor.float())
    model.save_pretrained(folder, state_dict=state)
    if wide:
        # transformers takes the dtype that it writes down from the model in memory, and would load bf16 again.
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)


def save_value_head(folder: Path, value_head: ValueHead) -> None:
    """value_head.safetensors (weight [D], bias []) and a small JSON file that describes it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in value_head.state_dict().items()}
    save_file(state, folder / VALUE_HEAD_FILE)
    about = {"kind": "linear", "width": state["weight"].numel(), "reads": "state after the final norm"}
    (folder / "value_head.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load_value_head(path: str, width: int) -> ValueHead:
    """The value head that lies in a model folder, or a new one at zero when there is none."""
    head = ValueHead(width)
    file = Path(path) / VALUE_HEAD_FILE
    if not file.exists():
        return head
    state = _read_safetensors(file, "delete it to start at 0")
    if state.keys() != {"weight", "bias"} or state["weight"].shape != torch.Size([width]):
        shapes = {name: tuple(t.shape) for name, t in state.items()}
        raise ModelError(
            f"{file} holds {shapes}, but the model is {width} wide: it belongs to another model. "
            "Delete it to start from a value head at zero."
        )
    head.load_state_dict(state)
    return head


def save_value_branch(folder: Path, branch: torch.nn.Module) -> None:
    """value_branch.safetensors: the trained weights of the layers that the value head reads."""
    own = {name: p.detach().cpu().contiguous() for name, p in branch.named_parameters() if p.requires_grad}
    save_file(own, folder / VALUE_BRANCH_FILE)


def _read_safetensors(file: Path, otherwise: str) -> dict[str, torch.Tensor]:
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} cannot be read ({error}): what it held is lost. Save it again, or {otherwise}."
        ) from error
    require_float_weights(file, state.keys())
    require_finite_tensors(state.items(), str(file))
    return state


def require_no_value_branch(folder: str) -> None:
    """Raise ModelError when the value head of a folder reads a branch, which the form in hand does not have."""
    if (Path(folder) / VALUE_BRANCH_FILE).exists():
        raise ModelError(
            f"The value head of {folder!r} reads the branch in {VALUE_BRANCH_FILE}, and this form has none: its values "
            "would mean nothing. Use the hydra form with value: branch, or delete value_branch.safetensors and "
            "value_head.safetensors to start values at 0."
        )


def load_value_branch(folder: str, branch: torch.nn.Module) -> None:
    """Put the value branch of a model folder in place; without one, the branch stays as it is.

    Raises ModelError for a branch of other layers.
    """
    file = Path(folder) / VALUE_BRANCH_FILE
    if not file.exists():
        return
    saved = _read_safetensors(file, "delete it to start the branch from the policy's layers")
    own = {name: p for name, p in branch.named_parameters() if p.requires_grad}
    if saved.keys() != own.keys() or any(saved[name].shape != p.shape for name, p in own.items()):
        raise ModelError(
            f"{file} holds {len(saved)} weights, and the value branch of this form has {len(own)}: they belong to "
            "another number of layers. Use the unfrozen_layers that it was trained with, or delete the file to start "
            "the branch from the policy's layers."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
