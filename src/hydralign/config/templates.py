"""Templates of prompts: text in which `{column}` stands for a column of the row, `{{` and `}}` for braces."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def split_template(template: str) -> list[tuple[str, str | None]]:
    """The template in pieces: plain text, and the column that follows it (None at the end).

    Raises ValueError for a brace without its other one, for `{}`, and for a template that names no column.
    """
    pieces: list[tuple[str, str | None]] = []
    text, end = "", 0
    for found in _BRACES.finditer(template):
        text += template[end : found.start()]
        end = found.end()
        column = found[1]
        if found[0] in ("{{", "}}"):
            text += found[0][0]
        elif column is None:
            raise ValueError(
                f"template={template!r:.200} has a single {found[0]!r} at character {found.start() + 1}: it is unclear "
                "where a column's name begins and ends. Write {name} for a column, and {{ or }} for a brace."
            )
        elif not column.strip():
            raise ValueError(
                f"template={template!r:.200} has {found[0]!r} at character {found.start() + 1}, which names no column: "
                "it is unclear what to put there. Write its name between the braces."
            )
        else:
            pieces.append((text, column.strip()))
            text = ""
    if not pieces:
        raise ValueError(
            f"template={template!r:.200} names no column: every prompt would be the same. Write {{name}} where the "
            "text of a column belongs, such as {dialogue}."
        )
    return [*pieces, (text + template[end:], None)]


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template names, each once, in order. Raises ValueError as `split_template` does."""
    return tuple(dict.fromkeys(column for _, column in split_template(template) if column is not None))
