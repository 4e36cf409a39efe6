"""Reads recipes: YAML file and overrides in, a frozen `Recipe` or one complete message out; and writes them back.

Strict at every depth: an unknown key, an unknown tag or a value of the wrong kind stops with its full dotted key,
because a mistyped setting that is silently ignored trains on the default. Values follow YAML 1.1, and the wanted
type decides in the end: `1e-5`, which YAML reads as text, is a number where a number is wanted.
Checks the shape of a recipe only: no file, model or data set that it names is opened here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hydralign.config.base import OLD_NAMES, Config
from hydralign.config.problems import config_error, list_problems
from hydralign.config.recipe import Recipe
from hydralign.config.yaml_reading import MAX_DEPTH, parse_yaml, read_yaml_file
from hydralign.errors import ConfigError, UnknownKeyError, shortened

C = TypeVar("C", bound=Config)


def load_recipe(
    path: str | os.PathLike[str], overrides: Sequence[str] | Mapping[str, Any] = (), *, notify: bool = True
) -> Recipe:
    """The recipe of a YAML file with `overrides` applied, checked and resolved.

    They are words of a command line, `["--ppo.steps", "20"]`, or values by dotted key, `{"ppo.steps": 20}`. Settings
    under an old name are said on stderr if `notify`.

    Raises `ConfigError` when the file cannot be read, is not a mapping of sections or holds values that cannot
    work (all are listed, one per line), and `UnknownKeyError` when one of them is a key that no section has.
    """
    values: Any = read_yaml_file(_as_path(path))
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    for key, value in pairs:
        values = _overridden(values, key.split("."), value, key)
    recipe = read_config(Recipe, values).resolved()
    if notify and os.environ.get("RANK", "0") == "0":
        for old in sorted(_old_names_in(values)):
            sys.stderr.write(f"{old} is called {OLD_NAMES[old]} now; the old name still works. Rename it in {path}.\n")
    return recipe


def _old_names_in(node: Any) -> set[str]:
    """Old names of settings among the keys of a recipe."""
    if isinstance(node, Mapping):
        return (OLD_NAMES.keys() & node.keys()).union(*map(_old_names_in, node.values()))
    return set().union(*map(_old_names_in, node)) if isinstance(node, list) else set()


def resolved_recipe(recipe: Recipe | str | os.PathLike[str]) -> Recipe:
    """A recipe made in Python with what it left open filled in, or that of a file. Raises as `load_recipe` does."""
    return recipe.resolved() if isinstance(recipe, Recipe) else load_recipe(recipe)


def dump_recipe(recipe: Recipe) -> str:
    """YAML of every setting, defaults included; `load_recipe` makes an equal recipe of it."""
    return dump_config(recipe)


def dump_config(config: Config) -> str:
    """YAML of one group of settings, as it stands in a recipe below the group's key."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def load_config(kind: type[C], path: str | os.PathLike[str]) -> C:
    """The group of settings that `dump_config` wrote into a file. Raises ConfigError."""
    return read_config(kind, read_yaml_file(_as_path(path)))


def _as_path(path: str | os.PathLike[str]) -> Path:
    """The file that a recipe is read from, `~` expanded. Raises ConfigError for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f"{path!r:.80} of type {type(path).__name__} is no recipe and no path of one: there is nothing to read. "
            "Give the path of a YAML file."
        )
    return Path(os.path.expanduser(path))


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Pairs (dotted key, value) of `--section.key value` and `--section.key=value`, in the order given.

    Values are YAML: `20`, `1e-5`, `true`, `text`, `[0.9, 0.99]`, `{type: lora, rank: 8}`. List items are addressed
    by index (`--ppo.rewards.0.weight 2`). A value that begins with `--` needs the form with `=`.
    """
    pairs: list[tuple[str, Any]] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not all(key.split(".")):
            raise ConfigError(
                f"argument {argument!r} names no setting: it is not clear what to change. "
                "Write --section.key value, for example --ppo.steps 20."
            )
        if key.count(".") >= MAX_DEPTH:
            shown = shortened(key, 80, show=str)
            raise ConfigError(f"--{shown} has more than {MAX_DEPTH} parts: no setting lies there. Shorten it.")
        value = text if equals else next(rest, "--")
        if not equals and value.startswith("--"):
            raise ConfigError(
                f"--{key} has no value: a setting cannot be changed to nothing. "
                f"Write --{key} VALUE, or --{key}=VALUE when the value begins with --."
            )
        pairs.append((key, parse_yaml(value, f"--{key}")))
    return pairs


def read_config(kind: type[C], values: Any) -> C:
    """A config of this kind made of plain values; raises one `ConfigError` that lists everything wrong."""
    if texts := list(_unusable_texts(values)):
        raise list_problems(texts)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise config_error(kind, error) from None
    switches = [
        f"{key}={value} is a yes or no: it would count as {int(value)}. Give the value itself, in quotes if it is text."
        for key, value in _lost_booleans(values, config)
    ]
    if switches:
        raise list_problems(switches)
    return config


def _overridden(node: Any, parts: Sequence[str], value: Any, key: str) -> Any:
    """A copy of `node` with one value replaced. Copies the path down to it, since YAML aliases share objects."""
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    above = ".".join(key.split(".")[: -len(parts)])
    if isinstance(node, list):
        if not head.isdecimal() or len(head) > 6 or int(head) >= len(node):
            raise ConfigError(
                f"--{key}: {above} is a list of {len(node)}, counted from 0, so {head!r} is none of its items. "
                f"Use an index that it has, or give it whole: --{above} '[…]'."
            )
        index = int(head)
        return [*node[:index], _overridden(node[index], rest, value, key), *node[index + 1 :]]
    if node is None and head.isdecimal():
        raise ConfigError(
            f"--{key}: {above} is not in the recipe, so it has no item {head} to change. "
            f"Give it whole: --{above} '[…]'."
        )
    if node is not None and not isinstance(node, dict):
        raise UnknownKeyError(
            f"{key} is not a setting: {above} holds the value {shortened(node, 80)}, which has no keys below it. "
            f"Set --{above} itself."
        )
    section = dict(node or {})
    for names in OLD_NAMES.items() if not rest else ():
        if head in names:  # one setting under two names: what is given last counts
            section = {name: held for name, held in section.items() if name not in names}
    return {**section, head: _overridden(section.get(head), rest, value, key)}


def _lost_booleans(raw: Any, read: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Keys at which a yes or no was taken for a number: Python counts True as 1."""
    if isinstance(raw, bool) and not isinstance(read, bool):
        yield key, raw
    elif isinstance(raw, Mapping):
        for name, value in raw.items():
            if isinstance(read, Config):
                name = name if name in type(read).model_fields else OLD_NAMES[name]
            child = getattr(read, name) if isinstance(read, Config) else read[name]
            yield from _lost_booleans(value, child, f"{key}.{name}" if key else name)
    elif isinstance(raw, list):
        for index, (value, child) in enumerate(zip(raw, read, strict=True)):
            yield from _lost_booleans(value, child, f"{key}.{index}")


def _unusable_texts(value: Any, key: str = "") -> Iterator[str]:
    """One sentence for each text, key or value, with half a surrogate pair or a NUL in it, and for bytes.

    A NUL may be replaced in data: keys and values of a `replace` section hold what they like of it.
    """
    if isinstance(value, str):
        if problem := _problem(value, nul=".replace" not in key):
            yield f"{key}={shortened(value, 80, show=ascii)} holds {problem}"
    elif isinstance(value, bytes):
        yield f"{key}={shortened(value, 80, show=ascii)} is binary (!!binary), and no setting is. Write it as text."
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if isinstance(name, str) and (problem := _problem(name, nul=not key.endswith(".replace"))):
                yield f"key {shortened(name, 80, show=ascii)} of {key or 'the recipe'} holds {problem}"
            elif isinstance(name, bytes):
                shown = shortened(name, 80, show=ascii)
                yield f"key {shown} of {key or 'the recipe'} is binary (!!binary). Write it as text."
            else:
                yield from _unusable_texts(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _unusable_texts(part, f"{key}.{index}")


def _problem(text: str, *, nul: bool) -> str | None:
    if nul and "\0" in text:
        return "a NUL character, which no path, name or text here can have. Remove it."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character ({text[error.start]!a}), which cannot be written as UTF-8. Remove it."
    return None
