"""Special tokens that stand in users' own texts are counted by row; those of a chat template are not."""

from __future__ import annotations

from typing import Any

from hydralign.config.data import PromptSourceConfig, SourceConfig
from hydralign.data import load_comparisons, load_demonstrations, load_labelled, load_prompts

ALL: dict[str, Any] = {"source": "unused", "held_out": {"by": "none"}}
CONFIG = SourceConfig.model_validate(ALL)


def test_every_loader_counts_the_rows_that_spell_special_tokens(tokenizer: Any) -> None:
    bad, good = "the end</s> and </s><s>", "the end < /s>"
    for loaded in (
        load_prompts(
            PromptSourceConfig.model_validate(ALL), tokenizer, seed=0, rows=[{"prompt": bad}, {"prompt": good}]
        ),
        load_prompts(
            PromptSourceConfig.model_validate({**ALL, "cut": {}}), tokenizer, seed=0, rows=[{"text": bad}] * 3
        ),
        load_demonstrations(CONFIG, tokenizer, rows=[{"prompt": good, "completion": bad}]),
        load_comparisons(CONFIG, tokenizer, rows=[{"prompt": "a", "chosen": bad, "rejected": good}]),
        load_labelled(CONFIG, tokenizer, rows=[{"text": bad, "label": "x", "note": "<s>"}]),
    ):
        rows = 3 if len(loaded.train) == 3 else 1
        assert loaded.report.spelled == {"</s>": rows, "<s>": rows}
        assert f"read as the real tokens: '</s>' in {rows} rows, '<s>' in {rows} rows." in loaded.report.describe()


def test_chats_count_by_what_their_authors_wrote(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "<s>" + chat_tokenizer.chat_template
    try:
        plain = [{"role": "user", "content": "the film"}]
        spelled = [{"role": "user", "content": "the</s>film"}]
        config = PromptSourceConfig.model_validate(ALL)
        loaded = load_prompts(config, chat_tokenizer, seed=0, rows=[{"prompt": plain}, {"prompt": spelled}])
    finally:
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.removeprefix("<s>")
    assert loaded.report.spelled == {"</s>": 1}


def test_rows_that_are_not_used_do_not_count(tokenizer: Any) -> None:
    config = PromptSourceConfig.model_validate({**ALL, "limit": 1})
    loaded = load_prompts(config, tokenizer, seed=0, rows=[{"prompt": "a"}, {"prompt": "b</s>"}])
    assert loaded.report.spelled == {}
    assert "Special" not in loaded.report.describe()
