"""Checkpoints: everything that a bit-for-bit continuation needs, in safetensors and JSON.

A damaged checkpoint is passed over for the newest whole one. There is no random state to keep: every random number
is keyed by seed, iteration and row, and the data cursor is the iteration itself.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hydralign.errors import RunFolderError, StorageError
from hydralign.files import delete, whole_folder
from hydralign.progress import say
from hydralign.reproducible import products_setting

State = TypeVar("State")
Tensors = dict[str, torch.Tensor]

_FILES = ("trained.safetensors", "optimizer.safetensors", "state.json")


SAME_BITS = "same bits at every address"


@cache
def products_repeat() -> bool:
    """Whether fp32 products of equal numbers at different addresses have equal bits here, as measured on a few."""
    generator = torch.Generator().manual_seed(0)
    for rows, width, columns in ((1, 32, 96), (2, 64, 64), (7, 48, 160)):
        left, right = (torch.randn(size, width, generator=generator) for size in (rows, columns))
        products = [_shifted(left, offset) @ _shifted(right, 3 * offset % 16).T for offset in range(16)]
        if not all(torch.equal(product, products[0]) for product in products):
            return False
    return True


def _shifted(x: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy that begins `offset` numbers after an allocation does."""
    return torch.empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)


def environment() -> dict[str, Any]:
    """What bit-for-bit equality depends on."""
    return {
        **{name: version(name) for name in ("torch", "transformers", "peft", "tokenizers", "numpy")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": os.environ.get("WORLD_SIZE", "1"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "products": SAME_BITS if products_repeat() else "bits depend on addresses",
        "products_setting": products_setting(),
    }


def write_checkpoint(
    folder: Path,
    step: int,
    about: Mapping[str, Any],
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
) -> None:
    """Write `folder/step-N` whole, then delete all but the newest `keep`. `about` is stored as JSON.

    Raises StorageError when the disk is full; older ones stay then.
    """
    with whole_folder(folder / f"step-{step}") as partial:
        save_file({name: p.detach().contiguous() for name, p in trained.items()}, partial / _FILES[0])
        save_file(_optimizer_tensors(trained, optimizer), partial / _FILES[1])
        text = json.dumps({**about, "environment": environment()}, indent=2) + "\n"
        (partial / _FILES[2]).write_text(text, encoding="utf-8")
    kept = checkpoints(folder)[-keep:]
    for old in _step_folders(folder):  # those of which a part was deleted, too
        if old not in kept:
            delete(old)
    for rest in (*folder.glob(".step-*.partial"), *folder.glob(".step-*.deleted")):
        delete(rest)


@contextmanager
def naming_newest_checkpoint(folder: Path) -> Iterator[None]:
    """Adds to a StorageError in this block which checkpoint in `folder` the run goes on from."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{error} {_newest_standing(folder)}") from error


def _newest_standing(folder: Path) -> str:
    saved = checkpoints(folder)
    if not saved:
        return f"There is no checkpoint in {folder} yet: the run begins again."
    return f"The newest checkpoint is {saved[-1]}: the run goes on from there."


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that have all of their files, oldest first."""
    return [path for path in _step_folders(folder) if all((path / name).is_file() for name in _FILES)]


def _step_folders(folder: Path) -> list[Path]:
    named = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


class DamagedCheckpointError(RunFolderError):
    """A checkpoint that cannot be read: a file is missing, cut short or not what was written."""


def resume(
    folder: Path,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    read_state: Callable[[Mapping[str, Any]], State],
    *,
    main: bool = True,
) -> State | None:
    """Put the newest whole checkpoint of `folder` back into weights and optimizer, and return its state; None when
    there is none at all.

    `read_state` makes the state of the stored `about` and raises ValueError, KeyError or TypeError when that is
    damaged. Damaged checkpoints are said and renamed to damaged-step-N by the `main` process, which speaks and writes.
    Raises RunFolderError when all are damaged, or when one belongs to another model.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(_step_folders(folder)):
        try:
            state, then = _read_state(path, read_state)
            weights, moments = _read_tensors(path, trained)
        except DamagedCheckpointError as error:
            damaged.append((path, str(error)))
            continue
        _restore(weights, moments, trained, optimizer)
        if main:
            _report(path, damaged, then)
        return state
    if damaged:
        listed = "\n  ".join(["", *(f"{path.name}: {reason}" for path, reason in damaged)])
        raise RunFolderError(
            f"No checkpoint in {folder} can be read, so there is nothing to go on from:{listed}\nPut one back from a "
            f"copy, or delete {folder} to train from the beginning."
        )
    return None


def _report(path: Path, damaged: list[tuple[Path, str]], then: Mapping[str, Any]) -> None:
    """Say what the run goes on from, and take damaged checkpoints out of the way of the ones that are to come."""
    for bad, reason in damaged:
        aside = bad.with_name(f"damaged-{bad.name}")
        delete(aside)
        try:
            bad.rename(aside)
        except OSError as error:
            raise StorageError(
                f"{bad} is damaged ({reason}) and cannot be renamed ({error.strerror}): it would pass for the newest "
                "checkpoint. Delete it."
            ) from error
        say(f"{bad.name} is damaged and left out ({reason}); it lies in {aside} now.")
    say(f"Resuming from {path.name}.")
    for difference in _differences(then, environment()):
        say(f"Not bit-equal to an uninterrupted run: {difference}.")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What bit-for-bit equality depends on and is not as it was, or does not hold on this machine."""
    found = [f"{key} was {then.get(key, 'not recorded')}, is {now[key]}" for key in now if then.get(key) != now[key]]
    if now["products"] != SAME_BITS and then.get("products") == now["products"]:
        found.append(f"{now['products']} on this machine ({products_setting()})")
    return found


def _read_state(path: Path, read_state: Callable[[Mapping[str, Any]], State]) -> tuple[State, Mapping[str, Any]]:
    """The loop's state and the environment of a checkpoint that has all of its files."""
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise DamagedCheckpointError(f"it lacks {', '.join(missing)}")
    try:
        about = json.loads((path / _FILES[2]).read_text(encoding="utf-8"))
        state, then = read_state(about), about["environment"]
        if not isinstance(then, dict) or whole_number(about["step"]) != int(path.name.removeprefix("step-")):
            raise ValueError("not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{_FILES[2]}: {type(error).__name__}, {error}") from error
    return state, then


def _read_tensors(path: Path, trained: Mapping[str, torch.nn.Parameter]) -> tuple[Tensors, Tensors]:
    """Weights and the optimizer's moments of a checkpoint, checked before anything is changed."""
    weights, moments = (_tensors(path / name) for name in _FILES[:2])
    if weights.keys() != trained.keys() or any(weights[n].shape != p.shape for n, p in trained.items()):
        raise RunFolderError(
            f"Checkpoint {path} holds other weights than this model trains: they cannot be put in. "
            "Give the run an output folder of its own."
        )
    for key, tensor in moments.items():
        name = key.rpartition("|")[0]
        if name not in trained or (tensor.dim() and tensor.shape != trained[name].shape):
            raise DamagedCheckpointError(f"{_FILES[1]} has {key!r}, which fits no trained weight")
    return weights, moments


def _tensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{path.name}: {error}") from error


def _restore(
    weights: Tensors, moments: Tensors, trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    for key, tensor in moments.items():
        name, entry = key.rsplit("|", 1)
        optimizer.state[trained[name]][entry] = tensor.to(trained[name].device)


def whole_number(value: Any) -> int:
    """A count out of JSON. Raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _optimizer_tensors(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Tensors:
    return {
        f"{name}|{entry}": value.detach().contiguous()
        for name, parameter in trained.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
