"""No prompt that a model sees on the held-out side is one that it sees on the training side, whatever the kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hydralign.config.data import (
    CutConfig,
    HashSplit,
    HeldOut,
    LastSplit,
    PromptSourceConfig,
    SourceConfig,
    SourceSplit,
)
from hydralign.data import load_comparisons, load_demonstrations, load_labelled, load_prompts
from hydralign.data.splits import split_rows
from hydralign.types import Prompt

WORDS = ["the", "film", "was", "good", "and", "bad", "in", "end", "who", "a", "one", "with"]


def texts(count: int, seed: int) -> list[str]:
    """Texts whose beginnings are often equal: a few first words, then more and more choice."""
    draw = random.Random(seed)
    return [
        " ".join([draw.choice(WORDS[:3]), draw.choice(WORDS[:6]), *draw.choices(WORDS, k=8), str(n + 1000 * seed)])
        for n in range(count)
    ]


def seen(prompts: tuple[Prompt, ...]) -> set[tuple[int, ...]]:
    return {prompt.token_ids for prompt in prompts}


@pytest.mark.parametrize("cut", [(2, 8), (1, 3), (5, 5)])
@pytest.mark.parametrize("by", ["hash", "last_percent", "source"])
def test_no_cut_prompt_stands_on_both_sides_and_every_row_is_counted(
    by: str, cut: tuple[int, int], bracket_tokenizer: Any, write_lines: Callable[..., str]
) -> None:
    other = write_lines("test.jsonl", [{"text": text} for text in texts(100, seed=1)])
    split: HeldOut = SourceSplit(by="source", source=other)
    if by != "source":
        split = HashSplit(percent=10) if by == "hash" else LastSplit(by="last_percent", percent=10)
    sizes = CutConfig(min_tokens=cut[0], max_tokens=cut[1])
    config = PromptSourceConfig(source="unused", cut=sizes, held_out=split)
    rows = [{"text": text} for text in texts(1000, seed=2)]
    rows += [{"text": f"unique {n} {n * n} and so on and on"} for n in range(500)]
    data = load_prompts(config, bracket_tokenizer, seed=0, rows=rows)
    assert not seen(data.train) & seen(data.held_out)
    report = data.report
    assert report.rows_read == (1600 if by == "source" else 1500) == report.kept + sum(report.dropped.values())
    assert ("whose prompt is held out" in report.dropped) is (by != "hash")
    if by == "hash":
        assert 0.05 < report.held_out / 1500 < 0.2
    elif by == "source":
        held_out = seen(data.held_out)
        everything = load_prompts(PromptSourceConfig(source="unused", cut=sizes), bracket_tokenizer, seed=0, rows=rows)
        others = [
            prompt.text for prompt in (*everything.train, *everything.held_out) if prompt.token_ids not in held_out
        ]
        assert sorted(prompt.text for prompt in data.train) == sorted(others)


def test_hash_of_a_cut_prompt_decides_whatever_follows_it(tokenizer: Any) -> None:
    config = PromptSourceConfig(
        source="unused", cut=CutConfig(min_tokens=6, max_tokens=6), held_out=HashSplit(percent=30)
    )
    beginnings = [f"{n:06d}" for n in range(300)]
    sides = []
    for end in (" and so on", " was another film"):
        data = load_prompts(config, tokenizer, seed=0, rows=[{"text": text + end} for text in beginnings])
        sides.append([prompt.text for prompt in data.held_out])
    assert sides[0] == sides[1]
    assert 60 < len(sides[0]) < 120  # 90 expected, standard deviation 7.9


def test_common_prompts_are_trained_on_and_the_share_is_made_up_from_the_others() -> None:
    rows = [("common ", n) for n in range(700)] + [(f"rare {n}", n) for n in range(300)]
    sides = split_rows(rows, HashSplit(percent=10), common_stay=True)
    assert 70 < len(sides.held_out) < 130  # 100 expected, standard deviation 8.2
    assert sum(n < 700 for n in sides.train) >= 700
    few = split_rows(rows[:720], HashSplit(percent=10), common_stay=True)
    assert 2 < len(few.held_out) < 18  # at most half of the 20 others is aimed at
    assert split_rows(rows[:700], HashSplit(percent=10), common_stay=True).held_out == ()
    assert len(split_rows(rows, HashSplit(percent=100 - 1e-9)).held_out) == 1000


def test_prompts_that_a_tokenizer_makes_equal_are_one_prompt() -> None:
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    lower = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    rows = [{"prompt": form(text)} for text in texts(300, seed=3) for form in (str.lower, str.upper, str.title)]
    data = load_prompts(PromptSourceConfig(source="unused", held_out=HashSplit(percent=5)), lower, seed=0, rows=rows)
    assert data.held_out
    assert not seen(data.train) & seen(data.held_out)
    assert data.report.dropped["whose prompt is held out"] > 0


@pytest.mark.parametrize("split", [HashSplit(percent=20), LastSplit(by="last_percent", percent=20)])
@pytest.mark.parametrize(
    ("load", "row", "key"),
    [
        (load_demonstrations, lambda n: {"prompt": f"p {n}", "completion": "c"}, lambda record: record.prompt),
        (load_demonstrations, lambda n: {"text": f"t {n}"}, lambda record: record.completion),
        (
            load_comparisons,
            lambda n: {"chosen": f"q {n}\ngood", "rejected": f"q {n}\nbad"},
            lambda record: record.prompt,
        ),
        (load_labelled, lambda n: {"text": f"t {n}", "label": 1}, lambda record: record.text),
    ],
)
def test_no_prompt_of_any_other_kind_stands_on_both_sides(load: Any, row: Any, key: Any, split: Any) -> None:
    rows = [row(n % 70) for n in range(200)]
    data = load(SourceConfig(source="unused", held_out=split), rows=rows)
    assert data.train
    assert data.held_out
    assert not {key(record).strip() for record in data.train} & {key(record).strip() for record in data.held_out}
    assert data.report.rows_read == data.report.kept + sum(data.report.dropped.values())
