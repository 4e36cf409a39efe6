"""Prints configs for people: every setting, what differs from the defaults, and how the batch numbers multiply out.

Plain text without colours, so that a log file and a terminal show the same. `dump_recipe` writes the form that
loads again; this one is for reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hydralign.config.base import Config
from hydralign.config.ppo import PPOConfig
from hydralign.config.recipe import Recipe

WIDTH = 120


def describe(config: Config, *, processes: int = 1) -> str:
    """Every group of settings on lines of its own; `*` marks what differs from the default, shown in parentheses.

    A group whose kind was chosen by a tag is compared with the defaults of that kind, and its tag with the default
    tag. Settings without a default carry no mark. PPO's batch arithmetic for `processes` follows its settings.
    """
    groups = [(name, "   ", items) for name, items in _groups(config, None, "")]
    ppo = config if isinstance(config, PPOConfig) else getattr(config, "ppo", None)
    if ppo:
        name = "batches" if ppo is config else "ppo batches"
        groups.append((name, "; ", batch_arithmetic(ppo, processes=processes)))
    indent = max(len(name) for name, _, _ in groups) + 3
    lines: list[str] = []
    for name, separator, items in groups:
        packed = _packed(items, separator, WIDTH - indent)
        lines += [f"{name:<{indent}}{packed[0]}", *(" " * indent + line for line in packed[1:])]
    return "\n".join(lines)


def batch_arithmetic(config: PPOConfig, *, processes: int = 1) -> list[str]:
    """How PPO's batch numbers multiply out, one clause each: answers, optimizer steps, each process's share, total."""
    batch = config.batch
    steps = batch.epochs * batch.minibatches
    share = -(-batch.minibatch_rows // processes)
    at_most = "" if batch.minibatch_rows % processes == 0 else "at most "
    return [
        f"{batch.rows} answers = {batch.prompts} prompts × {batch.samples_per_prompt}",
        f"{batch.epochs} epochs × {batch.minibatches} minibatches of {batch.minibatch_rows} rows = "
        f"{steps} optimizer steps per iteration",
        f"{processes} process{'es' if processes > 1 else ''} × {at_most}{share} rows per optimizer step",
        f"micro-batches of {min(batch.micro_batch_size, share)} rows",
        f"{config.steps} iterations = {config.steps * batch.rows:,} answers, {config.steps * steps:,} optimizer steps",
    ]


def diff(a: Config, b: Config) -> list[str]:
    """One line `dotted.key: value in a ≠ value in b` for each setting that differs, in the order of the fields."""
    return [f"{key}: {_text(left)} ≠ {_text(right)}" for key, left, right in _differences(a, b, "")]


def _groups(config: Config, reference: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Name and printed settings of a config, then of every config inside it; `reference` is what it is by default."""
    settings: list[str] = []
    inner: list[tuple[Config, Any, str]] = []
    for field, info in type(config).model_fields.items():
        value, default = getattr(config, field), _default(field, info, config, reference)
        if isinstance(value, Config):
            inner.append((value, default, _join(name, field)))
        elif value is None and isinstance(config, Recipe):
            continue  # shown alone, a section would read as if the others were lost
        elif _holds_configs(value):
            inner += [(item, None, f"{_join(name, field)}.{index}") for index, item in enumerate(value)]
        elif default is PydanticUndefined or value == default:
            settings.append(f"{field} {_text(value)}")
        else:
            settings.append(f"{field}* {_text(value)} ({_text(default)})")
    if settings:
        yield name or type(config).__name__.removesuffix("Config").lower(), settings
    for child in inner:
        yield from _groups(*child)


def _default(field: str, info: FieldInfo, config: Config, reference: Any) -> Any:
    """What the field is when nobody sets it; undefined when somebody must."""
    if type(reference) is type(config):
        return getattr(reference, field)
    if get_origin(info.annotation) is Literal and hasattr(reference, field):
        return getattr(reference, field)  # the tag: which kind would have been chosen
    return info.get_default(call_default_factory=True)


def _differences(a: Any, b: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Config) and type(a) is type(b):
        for field in type(a).model_fields:
            yield from _differences(getattr(a, field), getattr(b, field), _join(key, field))
    elif _holds_configs(a) and _holds_configs(b) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{key}.{index}")
    elif a != b:
        yield key, a, b


def _holds_configs(value: Any) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Config) for item in value)


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def _text(value: Any) -> str:
    """A value as YAML would have it, near enough to read."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Config):
        set_fields = ", ".join(f"{field}: {_text(getattr(value, field))}" for field in type(value).model_fields)
        return f"{{{set_fields}}}" if len(set_fields) <= WIDTH else f"{{{set_fields[:WIDTH]}…}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, str) and value and not set(value) & set(" \t\n,:"):
        return value
    return repr(value)


def _packed(items: Sequence[str], separator: str, width: int) -> list[str]:
    """The items on as few lines as fit the width, none of them broken."""
    lines = [items[0]]
    for item in items[1:]:
        if len(lines[-1]) + len(separator) + len(item) > width:
            lines.append(item)
        else:
            lines[-1] += separator + item
    return lines
