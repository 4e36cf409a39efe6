"""Files that every section's folder has, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydralign.config.base import Config
from hydralign.config.loading import dump_config
from hydralign.files import write_text

RESULT = "evaluation.json"
"""Written last: a section whose folder holds it is finished."""

CONFIG = "config.yaml"
"""The section as the run resolved it."""


def write_config(folder: Path, config: Config) -> None:
    """config.yaml: the section as the run resolved it."""
    write_text(folder / CONFIG, dump_config(config))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
