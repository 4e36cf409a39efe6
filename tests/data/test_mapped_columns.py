"""A column that the recipe maps goes before one that has a name of ours by itself, in every kind of data."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hydralign.config import read_config
from hydralign.config.data import CutConfig, DataConfig, NoSplit, PromptSourceConfig, SourceConfig
from hydralign.data import load_comparisons, load_demonstrations, load_labelled, load_prompts, training_texts
from hydralign.errors import ConfigError, DataError

EVERYTHING = {
    "prompt": "p", "query": "q", "text": "t", "completion": "c", "chosen": " a", "rejected": " b", "positive": " e",
    "negative": " f", "label": "l", "mine": " x", "other": " y",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
    "talk": [{"role": "user", "content": "ho"}, {"role": "assistant", "content": "no"}],
}  # fmt: skip


def source(columns: dict[str, str], **settings: Any) -> PromptSourceConfig:
    return PromptSourceConfig(source="unused", held_out=NoSplit(by="none"), columns=columns, **settings)


@pytest.mark.parametrize(
    ("columns", "cut", "expected"),
    [
        ({}, False, "p"),
        ({"prompt": "query"}, False, "q"),
        ({"query": "mine"}, False, " x"),
        ({"text": "mine"}, False, " x"),
        ({"prompt": "mine", "query": "other"}, False, " x"),
        ({"prompt": "query", "query": "prompt"}, False, "q"),
        ({"reference": "mine"}, False, "p"),
        ({}, True, "t"),
        ({"text": "prompt"}, True, "p"),
        ({"prompt": "mine"}, True, " x"),
    ],
)
def test_prompt_is_read_from_the_mapped_column(
    columns: dict[str, str], cut: bool, expected: str, tokenizer: Any
) -> None:
    config = source(columns, cut=CutConfig(min_tokens=1, max_tokens=1) if cut else None)
    (prompt,) = load_prompts(config, tokenizer, seed=0, rows=[EVERYTHING]).train
    whole = prompt.text if not cut else tokenizer.decode(tokenizer(expected).input_ids[:1])
    assert prompt.text == (expected if not cut else whole)


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        ({}, (" a", " b")),
        ({"positive": "mine", "negative": "other"}, (" x", " y")),
        ({"positive": "mine"}, (" x", " b")),
        ({"rejected": "other"}, (" a", " y")),
        ({"chosen": "rejected", "rejected": "chosen"}, (" b", " a")),
        ({"chosen": "mine", "negative": "other"}, (" x", " y")),
        ({"reference": "mine"}, (" a", " b")),
    ],
)
def test_answers_are_read_from_the_mapped_columns(columns: dict[str, str], answers: tuple[str, str]) -> None:
    (pair,) = load_comparisons(source(columns), rows=[EVERYTHING]).train
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p", *answers)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ("p", "c")),
        ({"text": "mine"}, ("", " x")),
        ({"prompt": "query"}, ("q", "c")),
        ({"completion": "mine", "text": "other"}, ("p", " x")),
        ({"prompt": "mine", "completion": "other", "text": "query"}, (" x", " y")),
        ({"messages": "talk"}, ("<user>ho</s><assistant>", "no</s>")),
        ({"reference": "mine"}, ("p", "c")),
    ],
)
def test_demonstration_is_made_of_the_mapped_columns(
    columns: dict[str, str], expected: tuple[str, str], chat_tokenizer: Any
) -> None:
    (made,) = load_demonstrations(source(columns), chat_tokenizer, rows=[EVERYTHING]).train
    assert (made.prompt, made.completion) == expected


def test_mapped_column_that_no_form_can_use_is_refused_rather_than_ignored() -> None:
    row = {name: EVERYTHING[name] for name in ("mine", "text")}
    with pytest.raises(DataError, match="no columns for demonstrations"):
        load_demonstrations(source({"prompt": "mine"}), rows=[row])


def test_label_and_texts_of_a_tokenizer_are_read_from_the_mapped_columns(tmp_path: Any) -> None:
    (made,) = load_labelled(source({"text": "mine", "label": "other"}), rows=[EVERYTHING]).train
    assert (made.text, made.label) == (" x", " y")
    (tmp_path / "rows.jsonl").write_text('{"text": "t", "prompt": "p", "mine": "x"}')
    for columns, expected in (({}, "t"), ({"prompt": "mine"}, "x"), ({"query": "mine"}, "x")):
        data = DataConfig(prompts=source(columns).model_copy(update={"source": str(tmp_path / "rows.jsonl")}))
        assert training_texts(data) == [expected]


@pytest.mark.parametrize(
    ("kind", "columns", "said"),
    [
        ("comparisons", {"question": "query"}, "data.comparisons.columns.question: no column of comparisons is read"),
        ("demonstrations", {"response": "answer"}, "data.demonstrations.columns.response: no column"),
        ("labelled", {"labels": "klass"}, "Did you mean 'label'?"),
        ("prompts", {"promt": "body"}, "Did you mean 'prompt'?"),
        ("prompts", {"querry": "body"}, "Did you mean 'query'?"),
        ("prompts", {"Text": "body"}, "Did you mean 'text'?"),
        ("prompts", {"": "body"}, "has the empty name ''"),
        ("labelled", {" ": "body"}, "has the empty name ' '"),
    ],
)
def test_mapped_name_that_nothing_reads_is_refused(kind: str, columns: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_config(DataConfig, {kind: {"source": "s", "columns": columns}})


def test_mapped_name_that_nothing_reads_is_refused_by_loaders_too() -> None:
    config = SourceConfig(source="s", columns={"chosen": "a", "reject": "b"})
    with pytest.raises(ConfigError, match="Did you mean 'rejected'"):
        load_comparisons(config, rows=[{"a": "x", "b": "y"}])


@pytest.mark.parametrize("name", ["prompt_id", "topic", "question", "context", "test", "completion", "reference"])
def test_mapped_columns_of_prompts_may_have_any_name_that_is_no_slip(name: str) -> None:
    assert PromptSourceConfig(source="s", columns={name: "theirs"}).columns == {name: "theirs"}
