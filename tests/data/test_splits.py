"""Which side a prompt falls on, and that none is on both."""

from __future__ import annotations

import pytest

from hydralign.config.data import HashSplit, LastSplit, NoSplit, PartConfig, SourceSplit
from hydralign.data.splits import held_out_by_hash, in_part, split_rows

KEYS = [f"prompt {n}" for n in range(2000)]


def test_hash_split_holds_out_its_share_and_grows_by_percent() -> None:
    small = {key for key in KEYS if held_out_by_hash(key, 10.0)}
    large = {key for key in KEYS if held_out_by_hash(key, 30.0)}
    assert 160 < len(small) < 240  # 200 expected, standard deviation 13.4
    assert 540 < len(large) < 660  # 600 expected, standard deviation 20.5
    assert small < large


def test_hash_split_is_pinned_so_that_no_release_moves_a_prompt() -> None:
    assert [n for n in range(60) if held_out_by_hash(f"prompt {n}", 10.0)] == [9, 52, 53, 54, 58]


def test_hash_split_ignores_order_company_and_blanks_around() -> None:
    sides = split_rows([(key, key) for key in KEYS], HashSplit(percent=20))
    fewer = split_rows([(f" {key}\n", key) for key in KEYS[::-7]], HashSplit(percent=20))
    assert set(fewer.held_out) == set(sides.held_out) & set(KEYS[::-7])
    assert set(fewer.train) == set(sides.train) & set(KEYS[::-7])
    assert sides.leaking == fewer.leaking == 0


def test_parts_share_nothing_cover_everything_and_do_not_follow_the_held_out_side() -> None:
    low, high = PartConfig(high=50), PartConfig(low=50)
    first, second = ({key for key in KEYS if in_part(key, part)} for part in (low, high))
    assert not first & second
    assert first | second == set(KEYS)
    assert 930 < len(first) < 1070  # 1000 expected, standard deviation 22.4
    held_out = {key for key in KEYS if held_out_by_hash(key, 30.0)}
    assert 240 < len(first & held_out) < 360  # half of 600
    assert all(in_part(key, PartConfig()) for key in KEYS)


@pytest.mark.parametrize(
    ("rows", "percent", "held_out"), [(10, 20, 2), (10, 24, 2), (10, 26, 3), (10, 1, 1), (2, 99, 2), (1, 50, 0)]
)
def test_last_split_holds_out_the_rounded_share(rows: int, percent: float, held_out: int) -> None:
    keyed = [(str(n), n) for n in range(rows)]
    sides = split_rows(keyed, LastSplit(by="last_percent", percent=percent))
    assert sides.held_out == tuple(range(rows))[rows - held_out :]
    assert sides.train == tuple(range(rows))[: rows - held_out]


def test_last_split_takes_held_out_prompts_off_the_training_side() -> None:
    keyed = [("a", 0), ("b", 1), ("a ", 2), ("c", 3), ("a", 4)]
    sides = split_rows(keyed, LastSplit(by="last_percent", percent=20))
    assert (sides.train, sides.held_out, sides.leaking) == ((1, 3), (4,), 2)


def test_source_split_holds_out_the_other_source_alone() -> None:
    split = SourceSplit(by="source", source="other")
    sides = split_rows([("a", 0), ("b", 1), ("c", 2)], split, [("b", 10), ("d", 11)])
    assert (sides.train, sides.held_out, sides.leaking) == ((0, 2), (10, 11), 1)


def test_no_split_holds_out_nothing() -> None:
    sides = split_rows([(key, key) for key in KEYS], NoSplit(by="none"))
    assert (sides.train, sides.held_out, sides.leaking) == (tuple(KEYS), (), 0)
