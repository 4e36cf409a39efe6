"""Which settings name files, folders or hub ids, which are mappings of the user's own keys, and which paths work."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import expanduser
from typing import Any

from hydralign.config.base import Config
from hydralign.errors import ConfigError, shortened

PATH_FIELDS = frozenset({"path", "adapter", "before", "after", "source", "function"})
"""Fields that name something to read, wherever they stand."""
USER_MAPPINGS = frozenset({"columns", "replace", "names", "where"})
"""Fields that are mappings of the user's own keys: none of those is a setting."""
LONGEST_NAME = 255
"""Bytes in one part of a path: the limit of Linux, macOS and Windows file systems."""
LONGEST_PATH = 3840
"""Bytes in `output`: Linux takes 4096 in all, and the files of a run need some."""
MOST_FOLDERS = 100
"""Folders inside each other in `output`: Python makes missing ones by calling itself for each."""


def paths_of(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every setting that names something to read."""
    if isinstance(value, Config):
        for field in type(value).model_fields:
            part = getattr(value, field)
            name = f"{key}.{field}".lstrip(".")
            texts = part if isinstance(part, tuple) else (part,)
            if field in PATH_FIELDS and all(isinstance(text, str) for text in texts):
                yield from ((name if len(texts) == 1 else f"{name}.{i}", text) for i, text in enumerate(texts))
            else:
                yield from paths_of(part, name)
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from paths_of(part, f"{key}.{index}")


def file_of(text: str) -> str:
    """The path in a setting: of path/to/file.py:function without the function."""
    return text.rpartition(":")[0] if ".py:" in text else text


def require_path_fits(path: str, key: str) -> str:
    """The path; raises ValueError when it, or one of its parts, is longer than can be made."""
    shown = f"{key}={shortened(path, 80, show=ascii)}"
    longest = max((len(part.encode()) for part in path.split("/")), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(
            f"{shown} has a name of {longest} bytes in it: file systems take {LONGEST_NAME}, so it could never be "
            "made. Shorten it."
        )
    if len(path.encode()) > LONGEST_PATH:
        raise ValueError(
            f"{shown} is {len(path.encode())} bytes long: file systems take 4096 with the names of the files "
            f"below it. Choose one of at most {LONGEST_PATH}."
        )
    folders = sum(part not in ("", ".") for part in path.split("/"))
    if folders > MOST_FOLDERS:
        raise ValueError(
            f"{shown} names {folders} folders inside each other: so many cannot be made. Choose one of at most "
            f"{MOST_FOLDERS}."
        )
    return path


def require_usable_paths(config: Config) -> None:
    """Raise ConfigError that lists the settings whose paths no file system takes, or that name an unknown user."""
    problems = []
    for key, text in paths_of(config):
        try:
            require_path_fits(file_of(text), key)
        except ValueError as error:
            problems.append(str(error))
        if expanduser(text).startswith("~"):
            problems.append(
                f"{key}={text!r} cannot be found: there is no user of that name. Write the path out, or ./~… for a "
                "name that begins so."
            )
    if problems:
        raise ConfigError("\n".join(problems))
