"""Whether two settings ask for the same result: what changes no result is left out, and paths are seen from {output}.

./run1, run1, run1/ and its absolute path are one folder, and a run whose folder was moved is the same run.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

from hydralign.config import Config, Recipe
from hydralign.config.paths import PATH_FIELDS, USER_MAPPINGS, file_of
from hydralign.config.recipe import OUTPUT

C = TypeVar("C", bound=Config)

_WITHOUT_EFFECT = {
    "micro_batch_size",
    "decode_batch_size",
    "batch_size",
    "saving",
    "trackers",
    "stop_after_bad_steps",
    "offload",
    "every",
    "title",
    "notes",
}
"""Settings that change memory, speed, the report's words, or what is written on the way, and no result."""

_ANY_FOLDER = "run"


def comparable(config: C, output: str) -> C:
    """The config with defaults where a setting changes no result, and with {output} for the folder `output` in paths.

    A recipe's own output is one name for all.
    """
    values = comparable_values(config.model_dump(), output)
    if isinstance(config, Recipe):
        values["output"] = _ANY_FOLDER
    return type(config).model_validate(values)


def comparable_values(value: Any, output: str, *, is_path: bool = False) -> Any:
    """The same for plain values; `is_path` says that texts among them are paths."""
    if isinstance(value, dict):
        return {
            key: part if key in USER_MAPPINGS else comparable_values(part, output, is_path=key in PATH_FIELDS)
            for key, part in value.items()
            if key not in _WITHOUT_EFFECT
        }
    if isinstance(value, list | tuple):
        return [comparable_values(part, output, is_path=is_path) for part in value]
    return comparable_text(value, output) if is_path and isinstance(value, str) else value


def comparable_text(text: str, output: str) -> str:
    """A path as seen from the output folder, or from the root when it lies elsewhere; other text as it is."""
    place = file_of(text)
    function = text.removeprefix(place)
    for form in (os.path.normpath, os.path.realpath):
        path, folder = (form(os.path.expanduser(each)) for each in (place, output))
        if path == folder or path.startswith(f"{folder}{os.sep}"):
            return OUTPUT + path.removeprefix(folder) + function
    absolute = os.path.realpath(os.path.expanduser(place))
    return absolute + function if os.path.exists(absolute) else text
