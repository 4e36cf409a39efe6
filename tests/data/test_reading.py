"""Every format gives the same rows, and every broken file says where it is broken."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest

from hydralign.data import load_demonstrations
from hydralign.data.reading import read_table
from hydralign.errors import DataError, RowError

Write = Callable[[str, str], str]
ROWS = [{"text": 'one, "two"\nthree', "label": "good"}, {"text": "vier … fünf", "label": "bad"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'text,label\n"one, ""two""\nthree",good\nvier … fünf,bad\n'


def values(source: str | tuple[str, ...], **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_table(source, **options).rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", LINES),
        ("rows.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2)),
        ("rows.json.gz", json.dumps(ROWS)),
        ("lmflow.json", json.dumps({"type": "text_only", "instances": ROWS})),
        ("no_type.json", json.dumps({"instances": ROWS}, indent=1)),
        ("lines_inside.json", LINES),
        ("rows.csv", CSV),
        ("rows.csv.gz", CSV),
        ("marked.csv", "\ufeff" + CSV),
        ("marked.jsonl", "\ufeff" + LINES),
        ("blank_lines.jsonl", "\n" + LINES.replace("\n", "\n\n")),
    ],
)
def test_read_table_gives_the_same_rows_from_every_format(write: Write, name: str, content: str) -> None:
    assert values(write(name, content)) == ROWS


def test_read_table_gives_the_same_rows_from_parquet_and_folders(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "hub_like").mkdir()
    dataset.to_parquet(tmp_path / "hub_like" / "train.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    for name in ("rows.parquet", "hub_like", "saved", "splits"):
        assert values(str(tmp_path / name)) == ROWS, name
    with pytest.raises(DataError, match=r"no split 'test': it has train"):
        read_table(str(tmp_path / "splits"), split="test")


def test_read_table_joins_files_in_order_when_several_are_named(write: Write) -> None:
    first, second = write("a.jsonl", '{"n": 1}\n{"n": 2}\n'), write("b.json", '[{"n": 3}]')
    assert values((first, second)) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_read_table_reads_a_changed_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"n": 1}]).to_parquet(path)
    stamp = path.stat()
    assert values(str(path)) == [{"n": 1}]
    datasets.Dataset.from_list([{"n": 2}]).to_parquet(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert values(str(path)) == [{"n": 2}]


def test_read_table_touches_neither_network_nor_working_folder_for_local_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "cwd").mkdir()
    for name in ("rows.parquet", "folder/train.parquet"):
        datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / name)
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(socket.socket, "connect", lambda _, where: asked.append(where))
    monkeypatch.chdir(tmp_path / "cwd")
    values((str(tmp_path / "rows.parquet"), str(tmp_path / "folder")))
    assert asked == []
    assert list(Path.cwd().iterdir()) == []


def test_read_table_leaves_progress_bars_and_download_counts_as_they_were(tmp_path: Path, capfd: Any) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    datasets.utils.enable_progress_bars()
    capfd.readouterr()
    before = datasets.utils.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    values(str(tmp_path / "rows.parquet"))
    assert capfd.readouterr() == ("", "")
    assert (datasets.utils.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS) == before


def test_read_table_names_class_labels_in_parquet_and_in_memory(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    dataset.to_parquet(tmp_path / "rows.parquet")
    for rows in (values(str(tmp_path / "rows.parquet")), values("unused", rows=dataset)):
        assert [row["label"] for row in rows] == ["pos", "neg", None]


def test_read_table_asks_the_hub_only_for_an_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    assert values("some-org/some.data", split="test") == ROWS
    for local in ("some-org/some.jsonl", "./some-org/data", "/some-org/data", "some-org/data/more", "data", "../a"):
        with pytest.raises(DataError, match="does not exist"):
            read_table(local)
    assert asked == [("some-org/some.data", "test")]
    (tmp_path / "some-org" / "local").mkdir(parents=True)
    (tmp_path / "some-org" / "local" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="some-org/local cannot be read"):
        read_table("some-org/local")
    assert len(asked) == 1


def test_read_table_translates_the_errors_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str, *, split: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/where' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no/where cannot be read: Dataset 'no/where' doesn't exist"):
        read_table("no/where")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"n": 1}\n\n{"n": \n', r"a\.jsonl, line 3: no valid JSON, Expecting value at column 6"),
        ("a.jsonl.gz", '{"n": 1}\n{"n": 2', r"a\.jsonl\.gz, line 2: no valid JSON"),
        ("a.jsonl", '{"n": 1}\n[1, 2]\n', r"a\.jsonl, row 2: list \[1, 2\] is no row"),
        ("a.json", '[{"n": 1},\n {"n" 2}]', r"a\.json: no valid JSON, .* at line 2, column 7"),
        ("a.jsonl", '{"n": 1}\n{"n": 2, "m": {"k": 1, "k": 2}}\n', r"a\.jsonl, line 2: key 'k' stands twice"),
        ("a.json", '[{"n": "}"},\n {"n": 2, "n": 3},\n {}]', r"object that ends in line 2: key 'n' stands twice"),
        ("a.json", '[{"n": 1}, 7]', r"a\.json, row 2: int 7 is no row"),
        ("a.json", '{"rows": [{"n": 1}]}', r"a\.json holds one dict: .*`instances`"),
        ("a.jsonl", "", r"a\.jsonl holds no rows"),
        ("a.jsonl", '{"n": 1}\n{"n": ' + "9" * 5000 + "}", r"a\.jsonl, line 2: a number of 5000 digits"),
        ("a.json", '[{"n": 1},\n{"n": ' + "9" * 5000 + "}]", r"a\.json, line 2: a number of 5000 digits"),
        ("a.json", '{"n": ' + "[" * 9999 + "\n1", r"a\.json: JSON nested too deeply"),
        ("a.json", "[]", r"a\.json holds no rows"),
        ("a.csv", "", r"a\.csv holds no rows"),
        ("a.csv", "n,m\n1,2\n\n3\n", r"a\.csv, row 2 \(ends on line 4\): 1 fields where the header has 2"),
        ("a.csv", "n,n\n1,2\n", r"a\.csv names a column twice"),
        ("a.csv", 'n\n"open\n', r"a\.csv, line 2: no valid CSV"),
        ("a.txt", "hello", r"a\.txt is of a kind that is not read: known are \.json"),
        ("a.parquet", "hello", r"a\.parquet cannot be read: "),
        ("absent.jsonl", None, r"absent\.jsonl does not exist"),
    ],
)
def test_read_table_says_where_a_file_is_broken(
    write: Write, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    source = str(tmp_path / name) if content is None else write(name, content)
    with pytest.raises(DataError, match=message):
        read_table(source)


def test_read_table_names_the_line_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": "fine"}\n{"n": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: byte 0xff .* is not UTF-8"):
        read_table(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read"):
        read_table(str(tmp_path / "a.jsonl.gz"))


def test_read_table_looks_at_what_a_file_holds_and_not_only_at_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(gzip.compress(b'{"n": 1}\n'))
    assert [row.values for row in read_table(str(file)).rows] == [{"n": 1}]
    file.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match=r"a\.jsonl holds a zip file, whatever its name"):
        read_table(str(file))


def test_read_table_keeps_line_numbers_when_a_text_holds_other_line_separators(write: Write) -> None:
    source = write("a.jsonl", '{"n": "a\u2028b\u0085c"}\n{"n": 2}\n')
    assert [row.number for row in read_table(source).rows] == [1, 2]


def test_blank_line_of_a_csv_file_with_one_column_is_a_row(write: Write) -> None:
    texts = [row["text"] for row in values(write("one.csv", "text\na\n\n\nb\n"))]
    assert texts == ["a", "", "", "b"]
    assert values(write("two.csv", "text,n\na,1\n\nb,2\n")) == [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}]
    with pytest.raises(RowError, match=r"one\.csv, row 2, field 'text': is empty"):
        load_demonstrations(str(write("one.csv", "text\na\n\nb\n")))


@pytest.mark.parametrize("source", ["~nobody-here/rows.jsonl", "x" * 300 + ".jsonl", "a\0b.jsonl"])
def test_path_that_no_file_can_have_is_named(source: str) -> None:
    with pytest.raises(DataError, match=r"(?s)rows|jsonl"):
        read_table(source)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{}"),
        ("state.json", "[]"),
        ("state.json", '{"_data_files": null}'),
        ("dataset_info.json", "[]"),
        ("dataset_info.json", '{"features": {"text": 3}}'),
        ("dataset_dict.json", "{}"),
        ("dataset_dict.json", "[]"),
    ],
)
def test_damaged_saved_data_set_is_named_with_the_cause(tmp_path: Path, file: str, content: str) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    if file == "dataset_dict.json":
        (folder / "state.json").unlink()
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=r"saved cannot be read: .*(Error\)|list'?)\. Check the folder"):
        read_table(str(folder))


def test_media_beside_the_texts_are_not_decoded(tmp_path: Path) -> None:
    media = {"bytes": b"nothing that could be played or shown", "path": "a.bin"}
    dataset = datasets.Dataset.from_dict({"text": ["a"], "sound": [media], "pictures": [[media]]})
    kinds = {"text": datasets.Value("string"), "sound": datasets.Audio(), "pictures": [datasets.Image()]}
    dataset = dataset.cast(datasets.Features(kinds))
    dataset.save_to_disk(tmp_path / "saved")
    assert values(str(tmp_path / "saved")) == [{"text": "a", "sound": media, "pictures": [media]}]
    assert values("unused", rows=dataset) == [{"text": "a", "sound": media, "pictures": [media]}]


def test_data_that_break_while_they_are_iterated_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        features = None

        def __iter__(self) -> Any:
            yield ROWS[0]
            raise ImportError("To support decoding sounds, please install 'torchcodec'")

    monkeypatch.setattr(datasets, "load_dataset", lambda name, *, split: Broken())
    monkeypatch.setattr("hydralign.data.reading.hub_access", lambda *_: nullcontext())
    with pytest.raises(DataError, match=r"some/data cannot be read: To support decoding sounds.*torchcodec"):
        read_table("some/data")


def test_read_table_reads_csv_fields_of_any_length(write: Write) -> None:
    long = "x" * 200_000
    assert values(write("a.csv", f"text\n{long}\n")) == [{"text": long}]


def test_read_table_refuses_rows_in_memory_that_have_no_fields() -> None:
    with pytest.raises(DataError, match=r"rows in memory, row 2: str 'b' is no row"):
        read_table("unused", rows=[{"a": 1}, "b"])  # type: ignore[list-item]


def test_columns_add_our_name_and_keep_theirs_when_mapped(write: Write) -> None:
    source = write("a.jsonl", '{"question": "q", "prompt": "other", "n": 1}\n{"prompt": "other", "n": 2}\n')
    expected = [{"question": "q", "n": 1, "prompt": "q"}, {"n": 2}]
    assert values(source, columns={"prompt": "question"}) == expected


def test_columns_list_what_is_there_when_a_mapped_one_is_missing(write: Write) -> None:
    source = write("a.jsonl", '{"question": "q"}\n{"reply": "r"}\n')
    with pytest.raises(DataError, match=r"'questions', which .* its columns are question, reply\. Did you mean 'quest"):
        read_table(source, columns={"prompt": "questions"})
