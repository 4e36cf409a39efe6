"""Fewer rows than there are: which ones are taken, and that order, copies and company of a file decide nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hydralign.config.data import FilterConfig, NoSplit, SourceConfig
from hydralign.data import load_demonstrations, load_labelled
from hydralign.data.subsets import choose_rows, fingerprint
from hydralign.types import Demonstration, LabelledText, Preference, Prompt

MAKE: list[Callable[[int], Any]] = [
    lambda n: Prompt(f"p {n}", (n,), {"label": str(int(n >= 200))}),
    lambda n: Demonstration("same prompt", f"c {n}", {"label": str(int(n >= 200))}),
    lambda n: Preference("same prompt", f"c {n}", "r", {"label": str(int(n >= 200))}),
    lambda n: LabelledText(f"t {n}", str(int(n >= 200)), {"label": str(int(n >= 200))}),
]


@pytest.mark.parametrize("make", MAKE)
def test_chosen_rows_are_a_fair_sample_of_a_sorted_file_whatever_its_order(make: Callable[[int], Any]) -> None:
    rows = [make(n) for n in range(400)]
    chosen = choose_rows(rows, 100)
    assert chosen == choose_rows(rows[::-1], 100) == choose_rows(rows[200:] + rows[:200], 100)
    assert choose_rows(rows, 60) == chosen[:60]
    labels = Counter(row.columns["label"] for row in chosen)
    assert min(labels.values()) > 35  # 50 expected, standard deviation 4.3
    assert sorted(map(repr, choose_rows(rows))) == sorted(map(repr, rows))


def test_company_moves_no_row_past_another() -> None:
    rows = [Prompt(f"p {n}", (), {}) for n in range(50)]
    order = [prompt.text for prompt in choose_rows(rows)]
    fewer = [prompt.text for prompt in choose_rows(rows[::3])]
    assert fewer == [text for text in order if text in set(fewer)]


def test_copies_of_a_row_are_chosen_one_by_one() -> None:
    rows = [Prompt("same", (), {"n": None})] * 60 + [Prompt("same", (), {}) for _ in range(60)]
    rows += [Prompt("other", (), {})] * 120
    counts = Counter(prompt.text for prompt in choose_rows(rows, 100))
    assert 30 < counts["same"] < 70
    assert Counter(prompt.text for prompt in choose_rows(rows[::-1], 100)) == counts


def test_token_ids_and_addresses_do_not_count_and_odd_values_do_no_harm() -> None:
    class Odd:
        pass

    rows = [Prompt(f"p {n}", (), {"image": Odd(), "nested": {1: "a", "b": {n}}, "nan": float("nan")}) for n in range(9)]
    others = [
        Prompt(f"p {n}", (n,), {"image": Odd(), "nested": {1: "a", "b": {n}}, "nan": float("nan")}) for n in range(9)
    ]
    assert [row.text for row in choose_rows(rows)] == [row.text for row in choose_rows(others)]
    assert fingerprint(rows) == fingerprint(others)


def test_fingerprint_tells_other_rows_and_another_order() -> None:
    rows = [Prompt(f"p {n}", (), {}) for n in range(4)]
    assert fingerprint(rows) == fingerprint(list(rows))
    assert len({fingerprint(rows), fingerprint(rows[:3]), fingerprint(rows[::-1]), fingerprint([])}) == 4


def test_limit_takes_a_fair_sample_of_a_sorted_file_in_its_order() -> None:
    config = SourceConfig(source="unused", held_out=NoSplit(by="none"), filter=FilterConfig(min_characters=2), limit=40)
    rows = [{"text": f"{n}", "label": int(n >= 150)} for n in range(300)]
    there, back = (load_labelled(config, rows=some).train for some in (rows, rows[::-1]))
    assert there == back[::-1]
    assert [int(row.text) for row in there] == sorted(int(row.text) for row in there)
    assert 10 < sum(row.label == "1" for row in there) < 30  # 20 of 40 expected, standard deviation 3.0


def test_limit_that_equals_all_usable_rows_leaves_none_of_them_out() -> None:
    config = SourceConfig(source="unused", held_out=NoSplit(by="none"), filter=FilterConfig(min_characters=2), limit=3)
    data = load_demonstrations(config, rows=[{"text": text} for text in ("a", "bb", "c", "dd", "ee")])
    assert [row.completion for row in data.train] == ["bb", "dd", "ee"]
    assert sum(data.report.dropped.values()) == 2
