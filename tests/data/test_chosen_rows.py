"""Rows chosen by the value of a column: which are used, how the others are counted, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hydralign.config import SourceConfig, dump_config, load_config
from hydralign.config.data import NoSplit
from hydralign.data import load_labelled
from hydralign.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"text": "a", "label": 0, "kind": "hate"},
    {"text": "b", "label": 1, "kind": "neither"},
    {"text": None, "label": None, "kind": "skip"},
    {"text": "c", "label": 1, "kind": None},
]


def texts(**where: Any) -> tuple[list[str], dict[str, int]]:
    data = load_labelled(SourceConfig(source="unused", held_out=NoSplit(by="none"), where=where), rows=ROWS)
    return [row.text for row in data.train], dict(data.report.dropped)


def test_rows_are_used_where_each_column_has_one_of_the_values() -> None:
    assert texts(kind=["hate", "neither"]) == (["a", "b"], {"whose kind is not hate or neither": 2})
    assert texts(label=[1]) == (["b", "c"], {"whose label is not 1": 2})  # the row without text is not read
    assert texts(label=["1"], kind=["neither"]) == (
        ["b"],
        {"whose label is not 1": 2, "whose kind is not neither": 1},
    )


def test_values_are_compared_as_what_they_are() -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": "x", "yes": True, "score": 1.0},
        {"text": "b", "label": "x", "yes": False, "score": 2.5},
        {"text": "c", "label": "x", "yes": None, "score": None},
    ]
    for where, expected in (
        ({"yes": [True]}, ["a"]), ({"yes": ["true"]}, ["a"]), ({"yes": ["None", False]}, ["b"]),
        ({"score": [1]}, ["a"]), ({"score": ["2.5"]}, ["b"]), ({"score": ["None", 1]}, ["a"]),
    ):  # fmt: skip
        config = SourceConfig.model_validate({"source": "unused", "held_out": {"by": "none"}, "where": where})
        assert [row.text for row in load_labelled(config, rows=rows).train] == expected


def test_unknown_column_and_empty_choice_are_refused() -> None:
    with pytest.raises(DataError, match=r"where names column 'kinds'.*Did you mean 'kind'\?"):
        texts(kinds=["hate"])
    with pytest.raises(ConfigError, match="where"):
        texts(kind=[])


def test_choice_is_written_and_read_back(tmp_path: Any) -> None:
    config = SourceConfig(source="unused", where={"path": ("x",), "label": (1, "2")})
    (tmp_path / "source.yaml").write_text(dump_config(config))
    assert load_config(SourceConfig, tmp_path / "source.yaml") == config
