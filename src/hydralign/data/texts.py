"""Plain texts for a tokenizer that is made from scratch."""

from __future__ import annotations

from hydralign.config.data import DataConfig
from hydralign.data.loading import load_demonstrations
from hydralign.data.reading import read_table
from hydralign.errors import DataError


def training_texts(config: DataConfig) -> list[str]:
    """Texts of the demonstrations, or else of the prompts' source, as they stand. Raises DataError without either."""
    if config.demonstrations is not None:
        rows = load_demonstrations(config.demonstrations).train
        return [row.prompt + row.completion for row in rows]
    if config.prompts is not None:
        table = read_table(
            config.prompts.source,
            split=config.prompts.split,
            columns=config.prompts.columns,
            replace=config.prompts.replace,
        )
        name = table.first("text", "prompt", "query")
        if name is not None:
            return [row.text(name) for row in table.rows]
    raise DataError(
        "model.new needs texts to train its tokenizer on, and the recipe's data name none: nothing could be encoded. "
        "Add data.demonstrations or data.prompts."
    )
