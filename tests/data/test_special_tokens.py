"""Special tokens that stand in users' own texts are counted by row; those of a chat template are not."""

from __future__ import annotations

from functools import partial
from typing import Any

from hydralign.config.data import PromptSourceConfig, SourceConfig
from hydralign.data import load_comparisons, load_demonstrations, load_labelled, load_prompts
from hydralign.data.special_tokens import recount_special_tokens
from hydralign.models import train_tokenizer

ALL: dict[str, Any] = {"source": "unused", "held_out": {"by": "none"}}
CONFIG = SourceConfig.model_validate(ALL)


def test_every_loader_counts_the_rows_that_spell_special_tokens(tokenizer: Any) -> None:
    bad, good = "the end</s> and </s><s>", "the end < /s>"
    for loaded in (
        load_prompts(
            PromptSourceConfig.model_validate(ALL), tokenizer, seed=0, rows=[{"prompt": bad}, {"prompt": good}]
        ),
        load_prompts(
            PromptSourceConfig.model_validate({**ALL, "cut": {"min_tokens": 8}}),
            tokenizer,
            seed=0,
            rows=[{"text": "a</s><s>" + "x" * 9 + "<unk>"}] * 3,
        ),
        load_demonstrations(CONFIG, tokenizer, rows=[{"prompt": good, "completion": bad}]),
        load_comparisons(CONFIG, tokenizer, rows=[{"prompt": "a", "chosen": bad, "rejected": good}]),
        load_labelled(CONFIG, tokenizer, rows=[{"text": bad, "label": "x", "note": "<s>"}]),
    ):
        rows = 3 if len(loaded.train) == 3 else 1
        assert loaded.report.special_tokens == {"</s>": rows, "<s>": rows}
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
    assert loaded.report.special_tokens == {"</s>": 1}


def test_rows_that_are_not_used_do_not_count(tokenizer: Any) -> None:
    config = PromptSourceConfig.model_validate({**ALL, "limit": 1})
    loaded = load_prompts(config, tokenizer, seed=0, rows=[{"prompt": "a"}, {"prompt": "b</s>"}])
    assert loaded.report.special_tokens == {}
    assert "Special" not in loaded.report.describe()


def test_only_texts_that_become_tokens_count(tokenizer: Any, chat_tokenizer: Any) -> None:
    def spelled(load: Any, row: dict[str, Any], reader: Any = tokenizer, **more: Any) -> dict[str, int]:
        config = PromptSourceConfig if load is load_prompts else SourceConfig
        return dict(load(config.model_validate(ALL | more), reader, rows=[row]).report.special_tokens)

    prompts = partial(load_prompts, seed=0)
    cut = PromptSourceConfig.model_validate({**ALL, "cut": {"min_tokens": 2, "max_tokens": 2}})
    assert prompts(cut, tokenizer, rows=[{"text": "the film</s>"}]).report.special_tokens == {}
    assert spelled(load_demonstrations, {"text": "the film", "prompt": "</s> is not read"}) == {}
    assert spelled(load_labelled, {"text": "the film", "label": "a", "query": "</s>"}) == {}
    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}] for text in "ab"]
    chosen, rejected = chats
    row = {"chosen": chosen, "rejected": rejected}
    assert spelled(load_comparisons, {**row, "prompt": "<s> is not read"}, chat_tokenizer) == {}
    chosen[1]["content"] = "a<s>"
    assert spelled(load_comparisons, row, chat_tokenizer) == {"<s>": 1}


def test_records_that_a_tokenizer_is_trained_on_are_counted_by_it() -> None:
    texts = [f"that film<eos> {n}" for n in range(3)]
    made = train_tokenizer(texts, vocabulary=300)
    for load, rows in (
        (load_demonstrations, [{"text": text} for text in texts]),
        (load_comparisons, [{"prompt": text, "chosen": "a", "rejected": "b"} for text in texts]),
        (load_labelled, [{"text": text, "label": "a"} for text in texts]),
    ):
        data: Any = load(CONFIG, rows=rows)
        assert data.report.special_tokens == {}
        assert recount_special_tokens(data, made).report.special_tokens == {"<eos>": 3}
