"""Prompts that a template makes of columns: what is rendered, measured, held out, and what is refused before a run."""

from __future__ import annotations

from typing import Any

import pytest

from hydralign.config import DataConfig, DemonstrationSourceConfig, PromptSourceConfig
from hydralign.config.data import FilterConfig, HashSplit, NoSplit
from hydralign.config.templates import split_template, template_columns
from hydralign.data import load_demonstrations, load_prompts, training_texts
from hydralign.errors import ConfigError, DataError, RowError

TEMPLATE = "Summarize.\n\n{dialogue}\n\nSummary:\n"
NONE = NoSplit(by="none")
ROWS = [
    {"dialogue": f"#Person1#: {'the film ' * n}{n}", "summary": f"{n} films", "topic": "film"} for n in range(1, 60)
]


def prompts(template: str, tokenizer: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    config = PromptSourceConfig(source="unused", template=template, **{"held_out": NONE, **settings})
    return load_prompts(config, tokenizer, rows=rows)


def demonstrations(template: str, rows: list[dict[str, Any]], **settings: Any) -> Any:
    settings = {"held_out": NONE, "columns": {"completion": "summary"}, **settings}
    return load_demonstrations(DemonstrationSourceConfig(source="unused", template=template, **settings), rows=rows)


def test_pieces_of_a_template() -> None:
    assert split_template("a {b} {{c}}{d}") == [("a ", "b"), (" {c}", "d"), ("", None)]
    assert split_template("{{{b}}}") == [("{", "b"), ("}", None)]
    assert template_columns("{a}{b}{a}") == ("a", "b")


def test_prompt_is_the_template_with_the_columns_put_in(tokenizer: Any) -> None:
    (made,) = prompts(TEMPLATE, tokenizer, ROWS[:1]).train
    assert made.text == "Summarize.\n\n#Person1#: the film 1\n\nSummary:\n"
    assert made.token_ids == tuple(tokenizer(made.text).input_ids)
    assert made.columns == ROWS[0]
    (ours,) = prompts("{text}={{", tokenizer, ROWS[:1], columns={"text": "dialogue"}).train
    assert ours.text == "#Person1#: the film 1={"
    (both,) = prompts("{topic}: {topic}", tokenizer, [{"topic": "{dialogue}", "dialogue": "no"}]).train
    assert both.text == "{dialogue}: {dialogue}"  # what a row says is no template


def test_demonstration_has_the_template_as_its_prompt_and_the_mapped_completion() -> None:
    (made,) = demonstrations(TEMPLATE, ROWS[:1]).train
    assert (made.prompt, made.completion) == ("Summarize.\n\n#Person1#: the film 1\n\nSummary:\n", "1 films")
    with pytest.raises(DataError, match=r"demonstrations with a template: `completion` is needed"):
        demonstrations(TEMPLATE, [{"dialogue": "a", "text": "b"}], columns={})


@pytest.mark.parametrize("percent", [10, 50])
def test_same_template_puts_a_row_on_the_same_side_for_sft_and_ppo(tokenizer: Any, percent: float) -> None:
    bounds = FilterConfig(min_characters=40, max_characters=400)
    settings: dict[str, Any] = {"held_out": HashSplit(percent=percent), "filter": bounds}
    asked = prompts(TEMPLATE, tokenizer, ROWS, **settings)
    shown = demonstrations(TEMPLATE, ROWS[::-1], **settings)
    for side in ("train", "held_out"):
        assert {one.text for one in getattr(asked, side)} == {one.prompt for one in getattr(shown, side)}
    assert len(asked.held_out) == pytest.approx(len(ROWS) * percent / 100, abs=8)
    assert {one.text for one in asked.held_out}.isdisjoint({one.prompt for one in shown.train})


def test_row_falls_on_one_side_whatever_the_template_says(tokenizer: Any) -> None:
    settings: dict[str, Any] = {"held_out": HashSplit(percent=30)}
    asked = prompts(TEMPLATE, tokenizer, ROWS, **settings)
    shown = demonstrations("Short:\n{dialogue}", ROWS, **settings)
    columns = {"prompt": "dialogue", "completion": "summary"}
    plain = load_demonstrations(
        DemonstrationSourceConfig(source="unused", columns=columns, held_out=HashSplit(percent=30)), rows=ROWS
    )
    held_out = {one.columns["dialogue"] for one in asked.held_out}
    assert {one.prompt.removeprefix("Short:\n") for one in shown.held_out} == held_out
    assert {one.prompt for one in plain.held_out} == held_out


def test_bounds_measure_what_fills_the_template(tokenizer: Any) -> None:
    rows = [{"dialogue": "x" * length, "summary": "y" * 500} for length in (3, 4, 9, 10)]
    bounds = FilterConfig(min_characters=4, max_characters=9)
    for data in (prompts(TEMPLATE, tokenizer, rows, filter=bounds), demonstrations(TEMPLATE, rows, filter=bounds)):
        assert [len(one.columns["dialogue"]) for one in data.train] == [4, 9]
        assert data.report.dropped == {"shorter than 4 characters": 1, "longer than 9 characters": 1}
    count = len(tokenizer("x" * 4).input_ids)
    data = prompts(TEMPLATE, tokenizer, rows, filter=FilterConfig(max_tokens=count))
    assert [len(one.columns["dialogue"]) for one in data.train] == [3, 4]


def test_special_tokens_are_counted_in_what_the_row_says(tokenizer: Any) -> None:
    data = prompts("</s>{dialogue}", tokenizer, [{"dialogue": "a"}, {"dialogue": "b</s>"}])
    assert data.report.special_tokens == {"</s>": 1}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Summarize this:", r"names no column"),
        ("{{dialogue}}", r"names no column"),
        ("{dialogue", r"a single '\{' at character 1"),
        ("a {dialogue}}", r"a single '\}' at character 13"),
        ("a {} b", r"has '\{\}' at character 3, which names no column"),
        ("{dia{logue}", r"a single '\{' at character 1"),
    ],
)
def test_template_that_cannot_be_filled_is_refused_with_the_recipe(template: str, message: str) -> None:
    for kind in (PromptSourceConfig, DemonstrationSourceConfig):
        with pytest.raises(ConfigError, match=message):
            kind(source="unused", template=template)


def test_template_and_cut_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="template and cut are both set"):
        PromptSourceConfig(source="unused", template="{a}", cut={})  # type: ignore[arg-type]


def test_unknown_column_is_named_with_the_nearest(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"'dialog', which rows in memory does not have.*Did you mean 'dialogue'\?"):
        prompts("{dialog}", tokenizer, ROWS)
    with pytest.raises(DataError, match=r"template names column 'dialog'"):
        demonstrations("{dialog}", ROWS)


def test_blank_columns_are_an_error_only_where_all_are_blank(tokenizer: Any) -> None:
    assert prompts("{a}\n{b}!", tokenizer, [{"a": "x", "b": ""}]).train[0].text == "x\n!"
    with pytest.raises(RowError, match=r"row 1, field 'a': is empty"):
        prompts("{a}\n{b}!", tokenizer, [{"a": " ", "b": ""}])
    skipped = prompts("{a}", tokenizer, [{"a": " "}, {"a": "x"}], filter=FilterConfig(empty="skip"))
    assert skipped.report.dropped == {"with an empty a": 1}
    with pytest.raises(RowError, match=r"field 'a': is int 3: text is needed"):
        prompts("{a}", tokenizer, [{"a": 3}])


def test_new_tokenizer_reads_rendered_prompts(write_lines: Any) -> None:
    source = write_lines("rows.jsonl", ROWS[:1])
    data = DataConfig(prompts=PromptSourceConfig(source=source, template=TEMPLATE))
    assert training_texts(data) == ["Summarize.\n\n#Person1#: the film 1\n\nSummary:\n"]


def test_column_that_only_the_template_reads_may_be_mapped() -> None:
    columns = {"question": "q", "completion": "a"}
    source = DemonstrationSourceConfig(source="unused", columns=columns, template="{question}", held_out=NONE)
    assert DataConfig(demonstrations=source).demonstrations == source
    made = load_demonstrations(source, rows=[{"q": "who", "a": "one"}]).train[0]
    assert (made.prompt, made.completion) == ("who", "one")
