"""From pydantic's errors to ours: one sentence for each setting that cannot be used, with its full dotted key."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hydralign.errors import ConfigError, UnknownKeyError, did_you_mean, shortened

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


def config_error(kind: type[BaseModel], error: ValidationError) -> ConfigError:
    """The error that lists everything wrong with the settings of this kind of config."""
    errors = error.errors(include_url=False)
    unknown = any(one["type"] in _UNKNOWN_KEY for one in errors)
    return list_problems(_problems(kind, errors), UnknownKeyError if unknown else ConfigError)


def list_problems(problems: Sequence[str], kind: type[ConfigError] = ConfigError) -> ConfigError:
    """The error that lists these problems, one per line."""
    return kind("\n".join([f"{len(problems)} settings cannot be used:", *problems] if len(problems) > 1 else problems))


@dataclass(frozen=True)
class _Place:
    """Where an error is: its dotted key, the section that should know the key's last part, the field, its types.

    `of_union` says that the error speaks for one member of a union without tags, such as `str | tuple[str, ...]`.
    """

    key: str
    section: type[BaseModel] | None
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
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tags(kind: Any) -> dict[Any, str]:
    """Values of a config's one-valued Literal fields, the tags by which a union knows it, and the fields' names."""
    fields = kind.model_fields.items() if _is_config(kind) else ()
    literals = [(name, get_args(field.annotation)) for name, field in fields if get_origin(field.annotation) is Literal]
    return {values[0]: name for name, values in literals if len(values) == 1}


def _member(kinds: Sequence[Any], part: str | int) -> list[Any]:
    """Which of a union's types pydantic means by a part of its location: a tag, or the type's name in some form."""
    if tagged := [kind for kind in kinds if part in _tags(kind)]:
        return tagged
    if str(part).startswith("tuple["):
        return [kind for kind in kinds if get_origin(kind) is tuple]
    named = [kind for kind in kinds if isinstance(kind, type) and get_origin(kind) is None]
    return [kind for kind in named if re.search(rf"\b{kind.__name__}\b", str(part))]


def _locate(root: type[BaseModel], location: Sequence[str | int]) -> _Place:
    """Follows an error's location through the types, since it holds tags and type names beside the keys."""
    kinds: list[Any] = [root]
    parts: list[str] = []
    section: type[BaseModel] | None = None
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


def _problems(root: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
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
    return [f"{place.key}={shortened(error['input'], 80)} cannot be used: it sets {_meaning(place)}. Give {wanted}."]


def _keys_below(fields: Mapping[str, FieldInfo], name: str) -> list[str]:
    """Where a key that is none of these fields is known one level further down: `steps` in ppo.steps."""
    return [
        f"{above}.{name}"
        for above, field in fields.items()
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
        known = place.section.model_fields if place.section else {}
        above, dot, name = key.rpartition(".")
        below = " or ".join(f"{above}{dot}{nearer}" for nearer in _keys_below(known, name))
        advice = f"Did you mean {below}?" if below else did_you_mean(name, known)
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
    named = [(name, tag) for kind in place.kinds for tag, name in _tags(kind).items() if tag == value]
    return f", here {{{named[0][0]}: {value}}}" if named else ""


def _wanted(error: ErrorDetails) -> str:
    """What would fit in place of the given value."""
    form = _WANTED.get(error["type"])
    return form.format_map(error.get("ctx", {})) if form else error["msg"].removeprefix("Input should be ")
