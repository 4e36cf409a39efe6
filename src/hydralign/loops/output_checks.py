"""Whether results can be written into a recipe's output folder without touching anything else; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydralign.config import Config, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.data import SourceConfig, SourceSplit
from hydralign.config.model import LoraForm, ModelConfig
from hydralign.config.rewards import ClassifierReward, ModelReward
from hydralign.errors import RunFolderError


def check_output(recipe: Recipe, titles: Iterable[str]) -> None:
    """Raise RunFolderError unless the output folder, and a folder in it for each title, can be made and written.

    A folder that the recipe reads, or one inside it, is refused: results would lie among what is read.
    """
    output = Path(recipe.output).expanduser()
    for folder in (output, *(output / title for title in titles)):
        _require_writable(folder)
    place = Path(os.path.realpath(output))
    for name, text in sorted(inputs_of(recipe)):
        read = Path(text).expanduser()
        if read.is_dir() and place.is_relative_to(os.path.realpath(read)):
            where = "is" if place == Path(os.path.realpath(read)) else "lies in"
            raise RunFolderError(
                f"output={recipe.output!r} {where} {text!r}, which {name} reads: results would lie among what is read, "
                "or replace it. Name a folder of its own, such as runs/first."
            )


def _require_writable(folder: Path) -> None:
    try:
        nearest = next(part for part in (folder, *folder.parents) if part.exists() or part.is_symlink())
    except OSError as error:
        raise RunFolderError(
            f"output={str(folder)!r} cannot be written ({error.strerror}): results would be lost. Name another folder."
        ) from error
    if not nearest.is_dir():
        about = "is a file" if nearest == folder else f"lies in {str(nearest)!r}, which is a file"
        raise RunFolderError(f"output={str(folder)!r} {about}: results need a folder. Name another.")
    if not os.access(nearest, os.W_OK | os.X_OK) or os.statvfs(nearest).f_flag & os.ST_RDONLY:
        raise RunFolderError(
            f"output={str(folder)!r} cannot be written (no permission in {str(nearest)!r}): results would be lost. "
            "Name another folder."
        )


def inputs_of(recipe: Recipe) -> set[tuple[str, str]]:
    """(setting, path) of every model and data set that the recipe names."""
    found: set[tuple[str, str]] = set()
    _collect(recipe, "", found)
    return found


def _collect(value: Any, key: str, found: set[tuple[str, str]]) -> None:
    if isinstance(value, ModelConfig | LoraForm | SourceConfig | SourceSplit | ModelReward | ClassifierReward):
        names: tuple[str, ...] = ("path", "adapter", "source")
    else:
        names = ("before", "after") if isinstance(value, CompareConfig) else ()
    for name in names:
        paths = getattr(value, name, None) or ()
        found.update((f"{key}.{name}", path) for path in ([paths] if isinstance(paths, str) else paths))
    if isinstance(value, Config):
        for name in type(value).model_fields:
            _collect(getattr(value, name), f"{key}.{name}" if key else name, found)
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            _collect(part, f"{key}.{place}", found)
