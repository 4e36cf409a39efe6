"""Reads YAML into plain values: one that cannot be built, repeats a key or explodes stops with its line.

YAML 1.1 by PyYAML's safe loader, which by itself lets the last of two equal keys win, follows aliases that double at
every level, and raises whatever a scalar's conversion meets.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from hydralign.errors import ConfigError, HydralignError, shortened

MAX_DEPTH = 50
MAX_VALUES = 100_000
LARGEST_INTEGER = 2**63 - 1

_UTF_16_AND_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits and an error that names its line for everything that it cannot build."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values: dict[int, int] = {}  # by id of a composed node: values below it, aliases counted as often as used

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Refuses what is too deep or too large before anything is built of it."""
        event = self.peek_event()
        if self._depth == MAX_DEPTH:
            raise _line_error(
                event, f"sections within sections, {MAX_DEPTH} deep: no setting lies there. Remove the inner ones."
            )
        self._depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._values:
                raise _line_error(event, f"*{event.anchor} stands inside &{event.anchor} itself: it would never end.")
        elif node is not None:
            self._values[id(node)] = self._count(node)
        return node

    def _count(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.MappingNode):
            _require_unique_keys(node)
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        count = 1 + sum(self._values[id(part)] for part in parts)
        if count > MAX_VALUES:
            raise _line_error(
                node, f"more than {MAX_VALUES} values, aliases written out: a recipe holds settings. Shorten it."
            )
        return count

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; every failure to convert one becomes a ConfigError with its line."""
        _require_decimal(node)
        try:
            value = super().construct_object(node, deep)
        except (HydralignError, yaml.YAMLError):
            raise
        except Exception as error:
            shown = f" {shortened(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
            kind = node.tag.rpartition(":")[2]
            raise _line_error(
                node, f"the value{shown} cannot be read as {kind} ({error}). Correct it, or put it in quotes as text."
            ) from error
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise _line_error(
                node,
                f"the number {shortened(node.value, 40, show=str)} is beyond {LARGEST_INTEGER}: no setting holds it. "
                "Give a smaller one, or put it in quotes as text.",
            )
        return value


def _require_unique_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            raise ConfigError(
                f"key {shortened(key.value)} stands twice in one section, the second time in line "
                f"{key.start_mark.line + 1}: only one of the two can count. Remove the other."
            )
        seen.add(key.value)


_OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?")
"""What YAML 1.1 reads to base 8 or 60: 010 as 8, 1:30 as 90. YAML 1.2, and people, do not."""


def _require_decimal(node: yaml.Node) -> None:
    """Refuse an unquoted number that is not what it looks like."""
    number = isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if number and _OTHER_BASE.fullmatch(node.value):
        base, why = (60, "parts between colons") if ":" in node.value else (8, "the leading zero")
        raise _line_error(
            node,
            f"{shortened(node.value, 40, show=str)} would be read to base {base}, because of {why}. Write the decimal "
            "number without, or put it in quotes as text.",
        )


_UNKNOWN_TAG = re.compile(r"could not determine a constructor for the tag '(.*)'", re.DOTALL)


def _unbuildable(reason: str) -> str:
    """The sentence on YAML that is well-formed and makes no settings."""
    if tag := _UNKNOWN_TAG.fullmatch(reason):
        name = shortened(tag[1].replace("tag:yaml.org,2002:", "!!"), 80, show=str)
        return f"the tag {name} is not known, so its value cannot be read. Remove it, or put the value in quotes."
    if reason == "found unhashable key":
        return (
            "a list or section stands where a key belongs, so no setting has that name. Write the key as plain text; "
            "put text that begins with {, such as {{name}}, in quotes."
        )
    return f"this cannot be read ({reason}). Correct the value there."


def _line_error(place: Any, problem: str) -> ConfigError:
    return ConfigError(f"line {place.start_mark.line + 1}: {problem}")


def parse_yaml(text: str, source: str) -> Any:
    """The plain values of a YAML text; raises ConfigError that names `source` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}, line {line}: the character {chr(error.character)!r} cannot stand in YAML ({error.reason}), so "
            "nothing can be read from it. Remove it, or save the file as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ConfigError(f"{source}{place}: {_unbuildable(reason)}") from error
        raise ConfigError(
            f"{source}{place}: this is not YAML ({reason}), so nothing can be read from it. "
            "Check indentation, quotes and brackets there."
        ) from error
    except HydralignError as error:
        raise ConfigError(f"{source}: {error}") from error.__cause__
    except (ValueError, OverflowError, RecursionError) as error:  # of the scanner, such as "\U00110000"
        raise ConfigError(
            f"{source}: this is not YAML ({error}), so nothing can be read from it. Check its escapes and brackets."
        ) from error


def read_yaml_file(path: Path) -> dict[str, Any]:
    """The sections of a YAML file in UTF-8. Raises ConfigError."""
    try:
        content = path.read_bytes()
        if content.startswith(_UTF_16_AND_32):
            raise ConfigError(
                f"recipe {path} cannot be read (it begins like UTF-16 or UTF-32): there is nothing to run. "
                "Save the file as UTF-8."
            )
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist: there is nothing to run. Check the path.") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"recipe {path} cannot be read ({error}): there is nothing to run. Name a YAML file in UTF-8."
        ) from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"recipe {path} holds {found}: settings are found by section and key. "
            "Begin with the lines `output: …` and `model: …`."
        )
    return values
