"""Reads recipes: YAML file and overrides in, a frozen `Recipe` or one complete message out; and writes them back.

Strict at every depth: an unknown key, an unknown tag or a value of the wrong kind stops with its full dotted key,
because a mistyped setting that is silently ignored trains on the default. Values follow YAML 1.1, and the wanted
type decides in the end: `1e-5`, which YAML reads as text, is a number where a number is wanted.
Checks the shape of a recipe only: no file, model or data set that it names is opened here.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hydralign.config.base import OLD_NAMES, Config
from hydralign.config.recipe import Recipe
from hydralign.config.texts import unusable_texts
from hydralign.config.yaml_reading import MAX_DEPTH, parse_yaml, read_yaml_file
from hydralign.errors import ConfigError, UnknownKeyError, did_you_mean, shortened

C = TypeVar("C", bound=Config)

_UNKNOWN_KEY = {"extra_forbidden", "invalid_key"}

_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a section of keys and values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_type": "a whole number",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "literal_error": "{expected}",
    "model_attributes_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "string_pattern_mismatch": "letters, digits, _, . and -, beginning with a letter or digit",
    "string_too_short": "text that is not empty",
    "string_type": "text (in quotes if it looks like a number, a date, yes or no)",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}


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
            raise ConfigError(f"--{key:.80} has more than {MAX_DEPTH} parts: no setting lies there. Shorten it.")
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
    if texts := list(unusable_texts(values)):
        raise _config_error(texts)
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        problems = _problems(kind, error.errors(include_url=False))
        raise _config_error(problems, unknown=any(e["type"] in _UNKNOWN_KEY for e in error.errors())) from None
    switches = [
        f"{key}={value} is a yes or no: it would count as {int(value)}. Give the value itself, in quotes if it is text."
        for key, value in _lost_booleans(values, config)
    ]
    if switches:
        raise _config_error(switches)
    return config


def _config_error(problems: Sequence[str], *, unknown: bool = False) -> ConfigError:
    kind = UnknownKeyError if unknown else ConfigError
    return kind("\n".join([f"{len(problems)} settings cannot be used:", *problems] if len(problems) > 1 else problems))


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
            f"{key} is not a setting: {above} holds the value {shortened(node)}, which has no keys below it. "
            f"Set --{above} itself."
        )
    section = dict(node or {})
    for names in OLD_NAMES.items() if not rest else ():
        if head in names:  # one setting under two names: what is given last counts
            section = {name: held for name, held in section.items() if name not in names}
    return {**section, head: _overridden(section.get(head), rest, value, key)}


# From pydantic's errors to ours.


@dataclass(frozen=True)
class _Place:
    """Where an error is: its dotted key, the section that should know the key's last part, the field, its types.

    `of_union` says that the error speaks for one member of a union without tags, such as `str | tuple[str, ...]`.
    """

    key: str
    section: type[Config] | None
    field: FieldInfo | None
    kinds: Sequence[Any]
    of_union: bool


def _alternatives(annotation: Any) -> list[Any]:
    """The types that an annotation allows, None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [] if annotation is types.NoneType else [annotation]


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def _tags(kind: Any) -> set[Any]:
    """Values of a config's one-valued Literal fields: the tags by which a union knows it."""
    fields = kind.model_fields.values() if _is_config(kind) else ()
    literals = [get_args(field.annotation) for field in fields if get_origin(field.annotation) is Literal]
    return {values[0] for values in literals if len(values) == 1}


def _member(kinds: Sequence[Any], part: str | int) -> list[Any]:
    """Which of a union's types pydantic means by a part of its location: a tag, or the type's name in some form."""
    if tagged := [kind for kind in kinds if part in _tags(kind)]:
        return tagged
    if str(part).startswith("tuple["):
        return [kind for kind in kinds if get_origin(kind) is tuple]
    named = [kind for kind in kinds if isinstance(kind, type) and get_origin(kind) is None]
    return [kind for kind in named if re.search(rf"\b{kind.__name__}\b", str(part))]


def _locate(root: type[Config], location: Sequence[str | int]) -> _Place:
    """Follows an error's location through the types, since it holds tags and type names beside the keys."""
    kinds: list[Any] = [root]
    parts: list[str] = []
    section: type[Config] | None = None
    field: FieldInfo | None = None
    of_union = False
    for part in location:
        of_union = False
        if part == "[key]":
            continue
        if len(kinds) > 1:
            of_union = not any(part in _tags(kind) for kind in kinds)
            kinds = _member(kinds, part)
            continue
        parts.append(str(part))
        kind = kinds[0] if kinds else None
        arguments = get_args(kind)
        section = kind if _is_config(kind) else None
        if section is not None:
            field = section.model_fields.get(str(part))
            kinds = _alternatives(field.annotation) if field else []
        elif get_origin(kind) is tuple and isinstance(part, int):
            item = arguments[0] if arguments[-1] is Ellipsis else arguments[min(part, len(arguments) - 1)]
            kinds = _alternatives(item)
        else:
            kinds = _alternatives(arguments[-1]) if arguments else []
    return _Place(".".join(parts), section, field, kinds, of_union)


def _problems(root: type[Config], errors: Sequence[ErrorDetails]) -> list[str]:
    """One sentence per wrong setting, in the order of the recipe's sections."""
    placed = [(_locate(root, error["loc"]), error) for error in errors]
    groups: dict[str, list[tuple[_Place, ErrorDetails]]] = {}
    for place, error in placed:
        if place.of_union and any(other.key.startswith(f"{place.key}.") for other, _ in placed):
            continue  # another member of the union fits the value's shape and says what is wrong inside it
        groups.setdefault(place.key, []).append((place, error))
    return [sentence for group in groups.values() for sentence in _sentences(group)]


def _sentences(group: Sequence[tuple[_Place, ErrorDetails]]) -> list[str]:
    """What is wrong at one key: each cause that speaks for itself, else one sentence with all that would fit."""
    if causes := [cause for place, error in group if (cause := _cause(place, error))]:
        return causes
    place, error = group[0]
    wanted = " or ".join(dict.fromkeys(_wanted(error) for _, error in group)) + _tagged_section(place, error["input"])
    return [f"{place.key}={shortened(error['input'])} cannot be used: it sets {_meaning(place)}. Give {wanted}."]


def _keys_below(section: type[Config] | None, name: str) -> list[str]:
    """Where a key that the recipe itself lacks is known one level further down: `steps` in ppo.steps."""
    fields = section.model_fields.items() if section is Recipe else ()
    return [
        f"{above}.{name}"
        for above, field in fields
        if any(_is_config(kind) and name in kind.model_fields for kind in _alternatives(field.annotation))
    ]


def _cause(place: _Place, error: ErrorDetails) -> str | None:
    """The sentence of an error that is not about one value's kind or range; None for those that are."""
    key, kind, context = place.key, error["type"], error.get("ctx", {})
    if kind == "value_error":
        cause = str(context["error"])
        # A model's own checks do not know which section it stands in.
        return re.sub(r"\bmodel\.", f"{key}.", cause) if key.endswith(".model") else cause
    if kind in _UNKNOWN_KEY:
        known = place.section.model_fields if place.section else ()
        if below := _keys_below(place.section, key):
            return f"{key} is not a setting: it would be ignored. Did you mean {' or '.join(below)}?"
        advice = did_you_mean(key.rpartition(".")[2], known)
        return f"{key} is not a setting: it would be ignored, and a default used in its place. {advice}"
    if kind == "missing":
        return f"{key} is missing: it sets {_meaning(place)}, and has no default. Add it."
    tags = ", ".join(sorted({tag for member in place.kinds for tag in _tags(member)}))
    tag_name = str(context.get("discriminator", "")).strip("'")
    if kind == "union_tag_not_found":
        return f"{key} has no {tag_name}: which settings it takes depends on that. Add {tag_name}, one of {tags}."
    if kind == "union_tag_invalid":
        return (
            f"{key}.{tag_name}={context['tag']!r} is not known: what stands beside it depends on it. Use one of {tags}."
        )
    return None


def _meaning(place: _Place) -> str:
    """What the setting is for, in the words of its own docstring."""
    text = place.field.description if place.field else None
    return f"“{' '.join(text.split()).rstrip('.')}”" if text else "nothing that is known"


def _tagged_section(place: _Place, value: Any) -> str:
    """An example for a tag that stands where its section should: `--model.form lora`."""
    for kind in place.kinds:
        for tag in _tags(kind):
            if value == tag:
                name = next(n for n, field in kind.model_fields.items() if get_args(field.annotation) == (tag,))
                return f", here {{{name}: {tag}}}"
    return ""


def _wanted(error: ErrorDetails) -> str:
    """What would fit in place of the given value."""
    form = _WANTED.get(error["type"])
    return form.format_map(error.get("ctx", {})) if form else error["msg"].removeprefix("Input should be ")


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
