"""Checkpoints: everything that a bit-for-bit continuation needs, in safetensors and JSON.

There is no random state to keep: every random number is keyed by seed, iteration and row, and the data cursor is
the iteration itself.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hydralign.errors import RunFolderError
from hydralign.models.saving import whole_folder
from hydralign.rewards.normalise import RunningMoments


@dataclass(frozen=True)
class PPOState:
    """What changes from iteration to iteration, beside weights and optimizer."""

    step: int = 0
    """Iterations done."""
    kl_coefficient: float = 0.05
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all scores so far."""
    bad_steps: int = 0
    """Poisoned iterations in a row."""


def environment() -> dict[str, Any]:
    """What bit-for-bit equality depends on."""
    return {
        **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers", "numpy")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def save_checkpoint(
    folder: Path,
    state: PPOState,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    metrics_position: int,
    keep: int,
) -> None:
    """Write `folder/step-N` of a PPO run. See `write_checkpoint`."""
    about = asdict(state) | {"metrics_position": metrics_position}
    write_checkpoint(folder, state.step, about, trained, optimizer, keep=keep)


def write_checkpoint(
    folder: Path,
    step: int,
    about: Mapping[str, Any],
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
) -> None:
    """Write `folder/step-N` whole, then delete all but the newest `keep`. `about` is kept as JSON."""
    with whole_folder(folder / f"step-{step}") as partial:
        save_file({name: p.detach().contiguous() for name, p in trained.items()}, partial / "trained.safetensors")
        save_file(_optimizer_tensors(trained, optimizer), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(
            json.dumps({**about, "environment": environment()}, indent=2) + "\n", encoding="utf-8"
        )
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    whole = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(
    path: Path, trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[PPOState, int, list[str]]:
    """Restore a PPO run in place; returns its state, the metrics file's position in bytes, and what differs in the
    environment. See `read_checkpoint`.
    """
    about, differences = read_checkpoint(path, trained, optimizer)
    state = PPOState(
        step=about["step"],
        kl_coefficient=about["kl_coefficient"],
        moments=RunningMoments.from_state(about["moments"]),
        bad_steps=about["bad_steps"],
    )
    return state, about["metrics_position"], differences


def read_checkpoint(
    path: Path, trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], list[str]]:
    """Restore weights and optimizer in place; returns what was kept about the run, and what differs in the
    environment, so that equality bit for bit is not promised.

    Raises RunFolderError when the checkpoint belongs to another model.
    """
    weights = load_file(path / "trained.safetensors")
    if weights.keys() != trained.keys() or any(weights[n].shape != p.shape for n, p in trained.items()):
        raise RunFolderError(
            f"Checkpoint {path} holds other weights than this model trains: they cannot be put in. "
            "Give the run an output folder of its own."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    for key, tensor in load_file(path / "optimizer.safetensors").items():
        name, entry = key.rsplit("|", 1)
        optimizer.state[trained[name]][entry] = tensor.to(trained[name].device)
    about = json.loads((path / "state.json").read_text(encoding="utf-8"))
    then, now = about["environment"], environment()
    return about, [f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key]]


def _optimizer_tensors(
    trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}|{entry}": value.detach().contiguous()
        for name, parameter in trained.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
