"""Files that every section's folder has, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hydralign.config.base import Config
from hydralign.config.loading import load_config
from hydralign.errors import ConfigError, RunFolderError
from hydralign.files import write_text

C = TypeVar("C", bound=Config)

RESULT = "evaluation.json"
"""Written last: a section whose folder holds it is finished."""

CONFIG = "config.yaml"
"""The section as the run resolved it."""


def read_stored_config(kind: type[C], folder: Path) -> C | None:
    """The section as the run resolved it; None where that is not there or damaged: it is written anew."""
    try:
        return load_config(kind, folder / CONFIG)
    except ConfigError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file, or one that holds no whole object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without lines that were cut off; none where there is no file."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [row for row in rows if isinstance(row, dict)]


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished section. Raises RunFolderError when it is damaged."""
    record = read_object(folder / RESULT)
    if record is None:
        raise RunFolderError(
            f"{folder / RESULT} is damaged: what the section came to cannot be read, so nothing can be built on it. "
            "Delete that file: the section then goes on from its newest checkpoint and measures again, or begins anew "
            "where it has none."
        )
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
