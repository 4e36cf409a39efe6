"""Prompts that a recipe's template makes of a row's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hydralign.config.templates import split_template, template_columns
from hydralign.data.rows import Row, Table
from hydralign.errors import DataError, did_you_mean


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, and the texts of the row that fill its template, in the template's order."""

    text: str
    filled: tuple[str, ...]

    @property
    def measured(self) -> str:
        """What bounds on length measure, and what decides on which side of a split the row falls."""
        return "".join(self.filled)


def prompt_renderer(table: Table, template: str) -> Callable[[Row], RenderedPrompt]:
    """How a row of this table becomes a prompt. Raises DataError for a column that no row has.

    The renderer raises RowError for a column that is no text, EmptyTextError when all of them are blank.
    """
    pieces, columns = split_template(template), template_columns(template)
    for name in columns:
        if not table.has(name):
            raise DataError(
                f"template names column {name!r}, which {table.source} does not have: its columns are "
                f"{', '.join(table.columns) or 'none'}. {did_you_mean(name, table.columns)}"
            )

    def render(row: Row) -> RenderedPrompt:
        texts = {name: row.text(name, may_be_empty=True) for name in columns}
        if not any(text.strip() for text in texts.values()):
            raise row.empty(columns[0])
        text = "".join(plain + texts.get(column or "", "") for plain, column in pieces)
        return RenderedPrompt(text, tuple(texts.values()))

    return render
