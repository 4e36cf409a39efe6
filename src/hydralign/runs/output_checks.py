"""Whether results can be written into a recipe's output folder without touching anything else; nothing is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hydralign.config import Recipe
from hydralign.config.paths import paths_of
from hydralign.errors import RunFolderError


def check_output(recipe: Recipe, titles: Iterable[str]) -> None:
    """Raise RunFolderError unless the output folder, and the folders in it for each title, can be made and written.

    A folder that the recipe reads is refused, and one inside it: results would lie among what is read.
    """
    output = Path(recipe.output).expanduser()
    _require_writable(output)
    for title in titles:
        for folder in (output / title, output / title / "model", output / title / "checkpoints"):
            _require_writable(folder)
    place = Path(os.path.realpath(output))
    for name, text in sorted(paths_of(recipe)):
        read = Path(os.path.realpath(Path(text).expanduser()))
        if read.is_dir() and place.is_relative_to(read):
            where = "is" if place == read else "lies in"
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
    if not os.access(nearest, os.W_OK | os.X_OK) or os.statvfs(nearest).f_flag & os.ST_RDONLY or _is_virtual(nearest):
        raise RunFolderError(
            f"output={str(folder)!r} cannot be written (no permission in {str(nearest)!r}): results would be lost. "
            "Name another folder."
        )


def _is_virtual(folder: Path) -> bool:
    """Whether the folder lies in a file system without space, such as /proc, in which no folder can be made.

    The administrator may write anywhere by permission. A disk in memory may have no size either.
    """
    if os.statvfs(folder).f_blocks:
        return False
    try:
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError:
        return True
    return False
