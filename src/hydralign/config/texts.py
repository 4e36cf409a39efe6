"""Texts of a recipe that no file system, tokenizer or UTF-8 file can take, found before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydralign.errors import shortened

LONGEST_NAME = 255
"""Bytes in one part of a path: the limit of Linux, macOS and Windows file systems."""
LONGEST_PATH = 3840
"""Bytes in `output`: Linux takes 4096 in all, and the files of a run need some."""


MOST_FOLDERS = 100
"""Folders inside each other in `output`: Python makes missing ones by calling itself for each."""


def unusable_texts(value: Any, key: str = "") -> Iterator[str]:
    """One sentence for each text, key or value, with half a surrogate pair or a NUL in it, and for bytes.

    A NUL may be replaced in data: keys and values of a `replace` section hold what they like of it.
    """
    if isinstance(value, str):
        if problem := _problem(value, nul=".replace" not in key):
            yield f"{key}={shortened(value)} holds {problem}"
    elif isinstance(value, bytes):
        yield f"{key}={shortened(value)} is binary (!!binary), and no setting is. Write it as text."
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if isinstance(name, str) and (problem := _problem(name, nul=not key.endswith(".replace"))):
                yield f"key {shortened(name)} of {key or 'the recipe'} holds {problem}"
            elif isinstance(name, bytes):
                yield f"key {shortened(name)} of {key or 'the recipe'} is binary (!!binary). Write it as text."
            else:
                yield from unusable_texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from unusable_texts(part, f"{key}.{index}")


def _problem(text: str, *, nul: bool) -> str | None:
    if nul and "\0" in text:
        return "a NUL character, which no path, name or text here can have. Remove it."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character ({text[error.start]!a}), which cannot be written as UTF-8. Remove it."
    return None


def require_path_fits(path: str, key: str) -> str:
    """The path; raises ValueError when it, or one of its parts, is longer than can be made."""
    longest = max((len(part.encode()) for part in path.split("/")), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(
            f"{key}={shortened(path)} has a name of {longest} bytes in it: file systems take {LONGEST_NAME}, so it "
            "could never be made. Shorten it."
        )
    if len(path.encode()) > LONGEST_PATH:
        raise ValueError(
            f"{key}={shortened(path)} is {len(path.encode())} bytes long: file systems take 4096 with the names of the "
            f"files below it. Choose one of at most {LONGEST_PATH}."
        )
    folders = sum(part not in ("", ".") for part in path.split("/"))
    if folders > MOST_FOLDERS:
        raise ValueError(
            f"{key}={shortened(path)} names {folders} folders inside each other: so many cannot be made. Choose one of "
            f"at most {MOST_FOLDERS}."
        )
    return path
