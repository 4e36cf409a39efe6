"""Rows that differ in columns or types, in files, folders and on the hub: read where they can be, else named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hydralign.config.data import NoSplit, SourceConfig
from hydralign.data import load_demonstrations
from hydralign.data.reading import read_table
from hydralign.errors import DataError, RowError

FIRST: list[dict[str, Any]] = [{"text": "a", "n": 1, "meta": {"x": 1}}, {"text": "b", "n": None}]
SECOND: list[dict[str, Any]] = [
    {"text": "c", "n": "two", "extra": [1, "x"]},
    {"text": "d", "meta": "none", "n": {"deep": [None]}},
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder(path: Path, kind: str) -> str:
    """A folder like one on the hub, whose two training files differ in columns and types."""
    path.mkdir()
    for number, rows in enumerate((FIRST, SECOND)):
        name = path / f"train-{number}.{kind}"
        if kind == "jsonl":
            name.write_text(lines(rows))
        elif kind == "json":
            name.write_text(json.dumps(rows))
        elif kind == "csv":
            name.write_text("text,n\na,1\nb,\n" if number == 0 else "text,extra\nc,x\nd,y\n")
        else:
            plain = [{"text": row["text"], f"column_{number}": number} for row in rows]
            datasets.Dataset.from_list(plain).to_parquet(name)
    (path / f"test-0.{kind}").write_bytes((path / f"train-0.{kind}").read_bytes())
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_rows_that_differ_are_read_from_folders_where_the_needed_columns_are_there(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "data", kind)
    data = load_demonstrations(SourceConfig(source=source, held_out=NoSplit(by="none")))
    assert [row.completion for row in data.train] == ["a", "b", "c", "d"]
    assert [row.values["text"] for row in read_table(source, split="test").rows] == ["a", "b"]
    if kind.startswith("json"):
        assert [dict(row.values) for row in read_table(source).rows] == [*FIRST, *SECOND]


def test_row_of_a_folder_that_lacks_a_needed_column_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(lines([{"text": "a"}, {"words": "b"}]))
    with pytest.raises(RowError, match=r"train\.jsonl, row 2, field 'text': is missing"):
        load_demonstrations(SourceConfig(source=str(tmp_path / "data"), held_out=NoSplit(by="none")))
    (tmp_path / "data" / "train.jsonl").write_text(lines([{"text": "a"}]) + "{broken\n")
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: no valid JSON"):
        read_table(str(tmp_path / "data"))


def test_unknown_split_of_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'validation': it has train, test\."):
        read_table(folder(tmp_path / "data", "jsonl"), split="validation")


def test_error_of_the_data_library_is_told_by_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise TypeError("Couldn't cast\ntext: string\nbecause column names don't match")
        except TypeError as error:
            raise datasets.exceptions.DatasetGenerationError(
                "An error occurred while generating the dataset"
            ) from error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"some/data cannot be read: Couldn't cast text: string because column names"):
        read_table("some/data")
