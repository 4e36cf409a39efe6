"""distinct-2: hand-counted shares, equal token counts, and blocks that an interval can be drawn over."""

from __future__ import annotations

import math

import pytest

from hydralign.errors import ConfigError, DataError
from hydralign.evaluation.statistics import compare_paired
from hydralign.evaluation.text_metrics import distinct_2_blocks, paired_distinct_2


def distinct_2(texts: list[str]) -> float:
    share, same = paired_distinct_2(texts, texts)
    assert share == same or math.isnan(share)
    return share


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["a b a b"], 2 / 3),  # ab, ba, ab
        (["The end. the END."], 3 / 5),  # the·end, end·., .·the, the·end, end·.
        (["don't don’t don't"], 1 / 2),  # a contraction is one word
        (["!!!!"], 1 / 3),  # marks stand alone
        (["été 42\n\tété 42"], 2 / 3),  # white space is only a border
    ],
)
def test_distinct_2_is_the_share_of_different_bigrams(texts: list[str], share: float) -> None:
    assert distinct_2(texts) == pytest.approx(share)


def test_no_bigram_crosses_into_the_next_text() -> None:
    assert distinct_2(["a b", "c d"]) == 1.0
    assert distinct_2(["x y", "x y"]) == 0.5  # with a crossing y·x it would be 2/3
    assert math.isnan(distinct_2(["a", "b", ""]))


def test_longer_side_is_cut_at_the_shorter_sides_total() -> None:
    before = ["a b", "c d"]
    after = ["a b c", "d d d d d d"]
    assert paired_distinct_2(before, after) == (1.0, 1.0)  # after is cut to "a b c" and "d"
    assert paired_distinct_2(after, before) == (1.0, 1.0)
    assert distinct_2(after) == pytest.approx(3 / 7)


def test_length_alone_does_not_move_the_pair() -> None:
    words = [f"w{i % 40} w{i * 7 % 40} w{i * 11 % 40}" for i in range(100)]
    once, thrice = paired_distinct_2(words, [" ".join([text] * 3) for text in words])
    assert distinct_2([" ".join([text] * 3) for text in words]) < 0.6 * distinct_2(words)
    assert thrice > 0.6 * once


def test_blocks_are_neighbours_and_give_an_interval() -> None:
    before = [f"one{i} two{i} three{i}" for i in range(200)]
    after = [f"one{i // 4} two{i // 4} three{i // 4}" for i in range(200)]
    old, new = distinct_2_blocks(before, after)
    assert (len(old), set(old)) == (25, {1.0})
    assert set(new) == {0.25}  # 8 neighbours share 2 texts; scattered prompts would share fewer
    result = compare_paired("distinct-2", old, new)
    assert (result.n, result.difference) == (25, -0.75)


@pytest.mark.parametrize(("prompts", "blocks"), [(0, 0), (7, 0), (15, 0), (16, 2), (50, 6), (203, 25), (1000, 25)])
def test_fewer_prompts_give_fewer_blocks(prompts: int, blocks: int) -> None:
    texts = ["a b c"] * prompts
    assert tuple(map(len, distinct_2_blocks(texts, texts))) == (blocks, blocks)


def test_every_prompt_is_in_one_block() -> None:
    texts = [" ".join(["w"] * (2 + i)) for i in range(19)]  # text i has i + 1 bigrams, all equal
    old, _ = distinct_2_blocks(texts, texts, blocks=2)
    assert [1 / share for share in old] == pytest.approx([sum(range(1, 10)), sum(range(10, 20))])


def test_blocks_without_a_bigram_are_left_out() -> None:
    texts = ["a b"] * 16 + ["a"] * 8
    assert len(distinct_2_blocks(texts, texts)[0]) == 2
    assert distinct_2_blocks(texts[8:], texts[8:]) == ([], [])


def test_unpaired_texts_and_single_blocks_are_refused() -> None:
    with pytest.raises(DataError, match="2 answers before and 1 after: each prompt needs one"):
        paired_distinct_2(["a", "b"], ["a"])
    with pytest.raises(DataError, match="16 answers before and 17 after"):
        distinct_2_blocks(["a"] * 16, ["a"] * 17)
    with pytest.raises(ConfigError, match="blocks=1: an interval needs at least 2"):
        distinct_2_blocks(["a"] * 16, ["a"] * 16, blocks=1)
