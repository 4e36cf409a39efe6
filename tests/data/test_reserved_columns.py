"""Columns called as what rewards get from the sampler: kept from rewards and said so, with advice that works."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hydralign.config.data import RESERVED_COLUMNS, PromptSourceConfig
from hydralign.data import load_prompts
from hydralign.rollout import shared_columns


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_reserved_column_is_withheld_and_passed_under_the_name_that_the_report_advises(
    tokenizer: Any, name: str
) -> None:
    rows = [{"prompt": "a film", name: "theirs", "topic": 1}]
    settings: dict[str, Any] = {"source": "unused", "held_out": {"by": "none"}}
    loaded = load_prompts(PromptSourceConfig.model_validate(settings), tokenizer, seed=0, rows=rows)
    assert shared_columns(loaded.train) == {"prompt": ["a film"], "topic": [1]}
    assert f"data.prompts.columns: {{data_{name}: {name}}}." in loaded.report.describe()
    settings["columns"] = {f"data_{name}": name}
    loaded = load_prompts(PromptSourceConfig.model_validate(settings), tokenizer, seed=0, rows=rows)
    assert shared_columns(loaded.train) == {"prompt": ["a film"], "topic": [1], f"data_{name}": ["theirs"]}
    with pytest.raises(ValidationError, match=rf"columns\.{name} gives a column a name.*data_{name}: answer"):
        PromptSourceConfig.model_validate({**settings, "columns": {name: "answer"}})
