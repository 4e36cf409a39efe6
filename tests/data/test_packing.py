"""Sequences: what is learned of each, what becomes of long ones, and rows that hold each of them once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hydralign.data.packing import TokenSequence, packed, sequences
from hydralign.types import Demonstration


def texts(*lengths: int) -> list[TokenSequence]:
    return [TokenSequence(np.full(length, number, dtype=np.int32), 0) for number, length in enumerate(lengths)]


def test_completion_alone_is_learned_and_ends_with_one_eos(tokenizer: Any) -> None:
    (made,), _ = sequences(
        [Demonstration("this thing", " is good")], tokenizer, [tokenizer.eos_token_id], max_tokens=64
    )
    prompt, completion = (tokenizer(text).input_ids for text in ("this thing", " is good"))
    assert made.ids.tolist() == [*prompt, *completion, tokenizer.eos_token_id]
    assert made.learned_from == len(prompt)
    assert made.learned == len(completion) + 1


def test_text_without_prompt_is_learned_from_its_second_token(tokenizer: Any) -> None:
    (made,), _ = sequences([Demonstration("", "this thing")], tokenizer, [tokenizer.eos_token_id], max_tokens=64)
    assert made.learned == len(made.ids) - 1 == len(tokenizer("this thing").input_ids)


@pytest.mark.parametrize("after", ["", "\n"])
def test_completion_that_spells_its_own_end_gets_no_second_one(tokenizer: Any, after: str) -> None:
    (made,), _ = sequences(
        [Demonstration("q", f"good{tokenizer.eos_token}{after}")], tokenizer, [tokenizer.eos_token_id], max_tokens=64
    )
    assert made.ids.tolist().count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("too_long", "lengths", "count"),
    [("cut", [10], "cut at the end"), ("split", [10, 10, 5], "split"), ("leave_out", [], "left out")],
)
def test_long_texts_are_counted(tokenizer: Any, too_long: Any, lengths: list[int], count: str) -> None:
    text = " ".join(["that"] * 40)
    whole = len(tokenizer(text).input_ids) + 1
    made, counts = sequences(
        [Demonstration("", text)], tokenizer, [tokenizer.eos_token_id], max_tokens=10, too_long=too_long
    )
    if too_long == "split":
        lengths = [10] * (whole // 10) + ([whole % 10] if whole % 10 else [])
        assert whole % 10 != 1
    assert [len(one.ids) for one in made] == lengths
    assert sum(value for reason, value in counts.items() if count in reason) == 1


def test_split_pieces_hold_every_token_in_order(tokenizer: Any) -> None:
    text = " ".join(["that and this thing of words"] * 9)
    made, _ = sequences([Demonstration("", text)], tokenizer, [tokenizer.eos_token_id], max_tokens=8, too_long="split")
    joined = np.concatenate([one.ids for one in made]).tolist()
    assert joined == [*tokenizer(text).input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("tokens", "lengths"), [(16, [8, 8]), (17, [8, 7, 2]), (18, [8, 8, 2]), (9, [7, 2]), (8, [8]), (25, [8, 8, 7, 2])]
)
def test_split_learns_the_end_however_long_the_last_piece_is(tokenizer: Any, tokens: int, lengths: list[int]) -> None:
    text = "x" * (tokens - 1)
    assert len(tokenizer(text).input_ids) == tokens - 1
    made, counts = sequences(
        [Demonstration("", text)], tokenizer, [tokenizer.eos_token_id], max_tokens=8, too_long="split"
    )
    assert [len(one.ids) for one in made] == lengths
    assert made[-1].ids[-1] == tokenizer.eos_token_id
    assert made[-1].learned >= 1
    assert "with pieces of a single token, which were left out" not in counts


def test_pieces_of_a_single_token_are_counted_where_they_cannot_be_avoided(tokenizer: Any) -> None:
    made, counts = sequences(
        [Demonstration("", "xxxx")], tokenizer, [tokenizer.eos_token_id], max_tokens=2, too_long="split"
    )
    assert [len(one.ids) for one in made] == [2, 2]
    assert counts["with pieces of a single token, which were left out"] == 1


def test_demonstration_whose_prompt_fills_the_row_is_left_out_and_counted(tokenizer: Any) -> None:
    made, counts = sequences(
        [Demonstration("this thing " * 20, "good")], tokenizer, [tokenizer.eos_token_id], max_tokens=8
    )
    assert made == ()
    assert counts["without a token to learn, left out"] == 1


def test_packed_rows_hold_each_sequence_once_and_none_is_too_long() -> None:
    items = texts(7, 3, 2, 8, 5, 5, 1, 10)
    rows = packed(items, 10)
    assert sorted(one.ids[0] for row in rows for one in row) == list(range(len(items)))
    assert max(sum(len(one.ids) for one in row) for row in rows) == 10
    assert len(rows) == 5  # 41 tokens need five rows of 10 at least
