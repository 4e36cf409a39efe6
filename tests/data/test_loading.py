"""Filters, limits and splits together, and that every row read is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydralign.config.data import (
    CutConfig,
    FilterConfig,
    LastSplit,
    NoSplit,
    PartConfig,
    PromptSourceConfig,
    SourceConfig,
    SourceSplit,
)
from hydralign.data import load_comparisons, load_demonstrations, load_labelled, load_prompts
from hydralign.data.loading import _BLOCK
from hydralign.data.reading import read_table
from hydralign.data.table_cache import cached_tables
from hydralign.errors import ConfigError, DataError

IMDB = Path(__file__).resolve().parents[3] / "shared" / "data" / "imdb" / "train.jsonl.gz"
NONE = NoSplit(by="none")


def accounted_for(data: Any) -> bool:
    report = data.report
    sides = (report.train, report.held_out) == (len(data.train), len(data.held_out))
    return sides and report.rows_read == report.kept + sum(report.dropped.values())


def test_filter_bounds_are_inclusive_and_counted() -> None:
    config = SourceConfig(source="unused", held_out=NONE, filter=FilterConfig(min_characters=3, max_characters=5))
    data = load_demonstrations(config, rows=[{"text": "x" * n} for n in range(1, 9)])
    assert [len(row.completion) for row in data.train] == [3, 4, 5]
    assert data.report.dropped == {"shorter than 3 characters": 2, "longer than 5 characters": 3}
    assert accounted_for(data)


def test_part_leaves_out_and_counts_the_other_rows() -> None:
    rows = [{"text": f"text {n}"} for n in range(200)]
    parts = [PartConfig(low=0, high=40), PartConfig(low=40, high=100)]
    configs = [SourceConfig(source="unused", held_out=NONE, part=part) for part in parts]
    sides = [load_demonstrations(config, rows=rows) for config in configs]
    assert all(map(accounted_for, sides))
    assert len(sides[0].train) + len(sides[1].train) == 200
    assert sides[0].report.dropped == {"outside the part 0-40 %": len(sides[1].train)}


def test_replacements_come_first_and_reach_chats(tokenizer: Any) -> None:
    config = SourceConfig(source="unused", held_out=NONE, replace={"<br />": "\n", "\n\n": "\n"})
    texts = load_labelled(config, rows=[{"text": "a<br /><br />b", "label": "x"}, {"text": "<br />c", "label": 1}])
    assert [row.text for row in texts.train] == ["a\nb", "\nc"]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    try:
        chat = [{"role": "user", "content": "x<br />"}, {"role": "assistant", "content": "<br />y"}]
        (made,) = load_demonstrations(config, tokenizer, rows=[{"messages": chat}]).train
    finally:
        tokenizer.chat_template = None
    assert (made.prompt, made.completion) == ("user: x\n;", "assistant: \ny;")


def test_filter_counts_tokens_of_prompt_and_answer_together(tokenizer: Any) -> None:
    config = SourceConfig(source="unused", held_out=NONE, filter=FilterConfig(min_tokens=3, max_tokens=4))
    rows = [{"prompt": "x", "chosen": chosen, "rejected": rejected} for chosen, rejected in
            (("yz", "yzx"), ("y", "yzx"), ("yzxy", "yz"), ("yzx", "yz"))]  # fmt: skip
    data = load_comparisons(config, tokenizer, rows=rows)
    assert [pair.chosen for pair in data.train] == ["yz", "yzx"]
    assert data.report.dropped == {"shorter than 3 tokens": 1, "longer than 4 tokens": 1}
    with pytest.raises(ConfigError, match="no tokenizer is given"):
        load_comparisons(config, rows=rows)


def test_limit_counts_the_rows_that_it_leaves_out() -> None:
    config = SourceConfig(source="unused", held_out=NONE, filter=FilterConfig(min_characters=3), limit=3)
    rows = [{"text": f"{n}" * (1 + n % 4)} for n in range(2 * _BLOCK)]
    data = load_demonstrations(config, rows=rows)
    assert len(data.train) == 3
    assert all(len(row.completion) >= 3 for row in data.train)
    assert data.report.dropped["beyond the limit of 3 usable rows"] > 4080  # a few of the others were too short
    assert accounted_for(data)


def test_limit_drops_nothing_when_there_are_just_as_many_rows() -> None:
    config = SourceConfig(source="unused", held_out=NONE, limit=3)
    assert load_demonstrations(config, rows=[{"text": t} for t in "abc"]).report.dropped == {}


def test_rows_keep_their_order_across_blocks(tokenizer: Any) -> None:
    config = PromptSourceConfig(source="unused", held_out=NONE, filter=FilterConfig(min_characters=2))
    rows = [{"prompt": str(n)} for n in range(_BLOCK + 50)]
    data = load_prompts(config, tokenizer, seed=0, rows=rows)
    assert [prompt.text for prompt in data.train] == [str(n) for n in range(10, _BLOCK + 50)]
    assert all(tokenizer.decode(prompt.token_ids) == prompt.text for prompt in data.train)


def test_one_prompt_falls_on_one_side_whatever_kind_of_data_it_is_in(tokenizer: Any) -> None:
    names = [f"the film {n}" for n in range(400)]
    config = PromptSourceConfig(source="unused")
    rows = [{"prompt": name, "completion": "c", "chosen": "a", "rejected": "b"} for name in names]
    texts = [{"text": name, "label": 1} for name in names]
    held_out = {
        tuple(record.prompt for record in load_demonstrations(config, rows=rows).held_out),
        tuple(record.prompt for record in load_comparisons(config, rows=rows).held_out),
        tuple(record.text for record in load_prompts(config, tokenizer, seed=0, rows=rows).held_out),
        tuple(record.text for record in load_labelled(config, rows=texts).held_out),
        tuple(record.completion for record in load_demonstrations(config, rows=texts).held_out),
    }
    assert len(held_out) == 1
    assert 5 < len(held_out.pop()) < 40  # 20 expected, standard deviation 4.4


def test_held_out_source_is_filtered_and_taken_off_the_training_side(write_lines: Callable[..., str]) -> None:
    train = write_lines("train.jsonl", [{"question": q, "completion": c} for q, c in ("ab", "bc", "cd", "de")])
    test = write_lines(
        "test.jsonl", [{"question": q, "completion": c} for q, c in (("b", "x"), ("d", "y"), ("e", "long"))]
    )
    config = SourceConfig(
        source=train,
        columns={"prompt": "question"},
        held_out=SourceSplit(by="source", source=test),
        filter=FilterConfig(max_characters=3),
        limit=3,
    )
    data = load_demonstrations(config)
    assert [row.prompt for row in data.train] == ["a"]  # of a, b and d, which the limit leaves
    assert [row.prompt for row in data.held_out] == ["b", "d"]
    assert data.report.dropped == {
        "beyond the limit of 3 usable rows": 1,
        "longer than 3 characters": 1,
        "whose prompt is held out": 2,
    }
    assert accounted_for(data)
    assert data.report.describe() == (
        f"{train} (held out: {test}): 7 rows read, 1 to train on, 2 held out.\n"
        "Left out: 1 beyond the limit of 3 usable rows, 1 longer than 3 characters, 2 whose prompt is held out."
    )


def test_data_without_usable_rows_is_refused_with_the_counts() -> None:
    config = SourceConfig(source="unused", filter=FilterConfig(min_characters=5))
    with pytest.raises(DataError, match=r"2 rows read, 0 to train on, 0 held out\.\nLeft out: 2 shorter than 5 char"):
        load_demonstrations(config, rows=[{"text": "a"}, {"text": "b"}])
    config = SourceConfig(source="unused", held_out=LastSplit(by="last_percent", percent=50))
    with pytest.raises(DataError, match=r"0 to train on, 1 held out\.\nLeft out: 1 whose prompt is held out"):
        load_demonstrations(config, rows=[{"text": "a"}, {"text": "a"}])


@pytest.mark.shared
@pytest.mark.skipif(not IMDB.exists(), reason="needs ../shared/data/imdb beside the checkout")
def test_imdb_loads_with_every_review_accounted_for(tokenizer: Any) -> None:
    config = PromptSourceConfig(
        source=str(IMDB), cut=CutConfig(min_tokens=2, max_tokens=8), filter=FilterConfig(min_characters=200)
    )
    data = load_prompts(config, tokenizer, seed=0)
    assert accounted_for(data)
    assert data.report.rows_read == 24_781
    assert data.report.dropped == {"shorter than 200 characters": 102}
    assert abs(data.report.held_out - 0.05 * 24_679) < 3 * 34.2  # three standard deviations of a fair draw
    assert {len(prompt.token_ids) for prompt in data.train} == set(range(2, 9))
    assert all({"id", "text", "label", "rating"} == prompt.columns.keys() for prompt in data.held_out)


def test_tables_are_kept_only_inside_and_only_under_the_same_settings(write: Callable[[str, str], str]) -> None:
    source = write("a.jsonl", '{"text": "a"}\n')

    def text(**more: Any) -> Any:
        return read_table(source, **more).rows[0].values["prompt" if "columns" in more else "text"]

    with cached_tables():
        assert text() == "a"
        write("a.jsonl", '{"text": "b"}\n')
        assert (text(), text(replace={"b": "c"}), text(columns={"prompt": "text"})) == ("a", "c", "a")
        assert read_table(source) is read_table(source)
    assert text() == "b"
