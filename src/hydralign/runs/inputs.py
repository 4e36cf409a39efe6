"""What a section reads, by content: OUT/<section>/inputs.json holds a hash of every model, data and reward file.

A result whose inputs have other contents now is stale. Times of files do not count, only what they hold; a file of
64 MB or more is read again only when its size or time changed. Names inside the output folder begin with {output}, so
that a run stays itself when its folder moves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any

from hydralign.config import Config, Recipe
from hydralign.config.paths import PATH_FIELDS, USER_MAPPINGS, file_of, paths_of
from hydralign.runs.function_files import function_files
from hydralign.runs.same_settings import comparable_text, comparable_values
from hydralign.runs.section_files import read_object
from hydralign.runs.steps import Step

RECORD = "inputs.json"

_LARGE = 64 * 2**20
_MODEL_SUFFIXES = {".safetensors", ".json", ".model", ".jinja", ".bin", ".tiktoken"}
_MODEL_TEXTS = {"vocab.txt", "merges.txt"}


def inputs_of(recipe: Recipe, step: Step, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of what the step reads now: setting → its files with hash and size, or a name.

    `before` is an earlier record, from which hashes of large files are taken that have the same size and time.
    """
    known = {} if before is None else before.get("inputs", {})
    inputs: dict[str, Any] = {}
    for setting, text in _paths_read(recipe, step):
        name = comparable_text(text, recipe.output)
        files = function_files(text) if setting.rpartition(".")[2] == "function" else _files(text)
        old = known.get(setting, {}).get("files", {})
        if files:
            listed = {part: _content(path, old.get(part, {})) for part, path in sorted(files.items())}
            place = file_of(text)
            folder = str(Path(place).expanduser().parent) if Path(place).expanduser().is_file() else place
            inputs[setting] = {"name": name, "at": comparable_text(folder, recipe.output), "files": listed}
        else:
            inputs[setting] = {"name": name}
    values = recipe.model_dump()
    for setting in ("seed", *step.reads(recipe)):
        value = _without_paths(comparable_values(reduce(getitem, setting.split("."), values), recipe.output))
        old_settings = known.get(setting, {}).get("settings")
        inputs[setting] = {"settings": _without_new_defaults(value, old_settings, attrgetter(setting)(recipe))}
    return {"output": recipe.output, "inputs": inputs}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a section's folder; None when it has none that can be read."""
    record = read_object(folder / RECORD)
    if record is None or not isinstance(record.get("output", ""), str):
        return None
    inputs = record.get("inputs")
    return record if isinstance(inputs, dict) and all(map(_is_input, inputs.values())) else None


def _is_input(one: Any) -> bool:
    """Whether a part of a record has the form that `inputs_of` gives it."""
    if not isinstance(one, dict) or not ("settings" in one or isinstance(one.get("name"), str)):
        return False
    files = one.get("files", {})
    return isinstance(files, dict) and all(isinstance(about, dict) and "sha256" in about for about in files.values())


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what has other content now, what is not there any more): a line for each file, a name for each missing input."""
    changed: list[str] = []
    gone: list[str] = []
    old_inputs, new_inputs = before["inputs"], now["inputs"]
    for setting in dict.fromkeys([*old_inputs, *new_inputs]):
        old, new = old_inputs.get(setting), new_inputs.get(setting)
        if old is None or new is None:
            changed.append(f"{setting} was {'not read' if old is None else 'read'} then")
        elif "files" in old and "files" in new:
            changed += [f"{setting}: {line}" for line in _changed_files(new["at"], old["files"], new["files"])]
        elif "files" in old:
            gone.append(old["name"])
        elif old != new:
            how = "has other settings" if "settings" in old else f"was {old['name']}, is {new['name']}"
            changed.append(f"{setting} {how}")
    return changed, gone


def _changed_files(at: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        path = f"{at}/{name}"
        if name not in new:
            yield f"{path} is not there any more"
        elif name not in old:
            yield f"{path} is new"
        elif old[name]["sha256"] != new[name]["sha256"]:
            yield f"{path} has other content"


def _paths_read(recipe: Recipe, step: Step) -> Iterator[tuple[str, str]]:
    """Every setting that names something to read, with its value."""
    yield from paths_of(step.config)
    for setting in step.reads(recipe):
        yield from paths_of(attrgetter(setting)(recipe), setting)


def _without_paths(value: Any) -> Any:
    """Settings without what is compared by content; of a function the name stays."""
    if isinstance(value, dict):
        kept = {
            key: part if key in USER_MAPPINGS else _without_paths(part)
            for key, part in value.items()
            if key not in PATH_FIELDS
        }
        function = value.get("function")
        return kept | {"function": function.rpartition(":")[2]} if isinstance(function, str) else kept
    return [_without_paths(part) for part in value] if isinstance(value, list) else value


def _without_new_defaults(value: Any, before: Any, config: Any) -> Any:
    """Settings of this config without those that an earlier record lacks and that have their defaults: the version that
    wrote it did not know them, and did what their defaults do.
    """
    if not (isinstance(value, dict) and isinstance(before, dict) and isinstance(config, Config)):
        return value
    fields = type(config).model_fields
    return {
        name: _without_new_defaults(part, before.get(name), getattr(config, name))
        for name, part in value.items()
        if name in before or getattr(config, name) != fields[name].get_default(call_default_factory=True)
    }


# Files of an input.


def _files(text: str) -> dict[str, Path]:
    """Name within the input: file. None for what is no file or folder here, such as a hub id."""
    path = Path(text).expanduser()
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        return {}
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    shown = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.split("/"))}
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        return shown
    return {name: file for name, file in shown.items() if _is_model_part(name)} | _base_files(path)


def _is_model_part(name: str) -> bool:
    if "/" in name:
        return name.endswith(".jinja")
    return Path(name).suffix in _MODEL_SUFFIXES or name in _MODEL_TEXTS


def _base_files(folder: Path) -> dict[str, Path]:
    """Files of the model that an adapter belongs to, where that lies in a folder of its own."""
    try:
        about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = Path(about["base_model_name_or_path"]).expanduser()
        apart = base.is_dir() and base.resolve() != folder.resolve()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return {}
    return {f"base/{name}": file for name, file in _files(str(base)).items()} if apart else {}


def _content(path: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    about = path.stat()
    same = before.get("bytes") == about.st_size and before.get("mtime_ns") == about.st_mtime_ns
    if about.st_size >= _LARGE and same:
        return dict(before)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": about.st_size, "mtime_ns": about.st_mtime_ns}
