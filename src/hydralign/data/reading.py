"""Reads rows out of files, folders, the hub or memory, and knows where each of them stood.

JSON, JSON lines and CSV are read with the standard library: only so can an error name the file and the line,
and rows may differ in their fields. Parquet, saved data sets and hub ids go through `datasets`; its class labels
(stored as numbers) become their names, an absent one (-1) becomes None. Local data is read anew on every call and
nothing is left on disk; a hub data set stays in the hub's own cache. CSV fields are always text.

This module judges no field of a row. LMFlow files are JSON objects whose rows stand in `instances`.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from hydralign.data.rows import Row, Table
from hydralign.data.table_cache import cached_rows, cached_table
from hydralign.errors import DataError, HydralignError, did_you_mean, shortened
from hydralign.hub import describe_search, hub_access

IN_MEMORY = "rows in memory"
_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FROM_ONE = "rows count from 1"
_GZIP = b"\x1f\x8b"
_PACKED = {b"PK\x03\x04": "zip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PAR1": "parquet"}
"""First bytes of other kinds of files."""
_LINES = "row numbers are line numbers, from 1"
_AFTER_HEADER = "rows count from 1, after the header"


def read_table(
    source: str | Sequence[str],
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    replace: Mapping[str, str] | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
) -> Table:
    """All rows of `source` (or of `rows` in its place), with `columns` (ours: theirs) and `replace` applied.

    A mapped column is added under our name; the original stays. Replacements (old: new) are made in every text, also
    inside chats, one after the other. Raises DataError for a source that is missing,
    unreadable or empty, and for a mapped column that no row has.
    """
    wanted, changes = dict(columns or {}), dict(replace or {})
    if rows is not None:
        return _table(IN_MEMORY, list(_replaced_rows(_memory_rows(rows), changes)), wanted)
    sources = (source,) if isinstance(source, str) else tuple(source)
    parts = tuple((one, split, *changes.items()) for one in sources)

    def create() -> Table:
        read = [row for one in sources for row in _source_rows(one, split, changes)]
        return _table(" + ".join(sources), read, wanted)

    return cached_table((parts, *wanted.items()), parts, create)


def _source_rows(source: str, split: str, replace: Mapping[str, str]) -> tuple[Row, ...]:
    key = (source, split, *replace.items())
    return cached_rows(key, lambda: tuple(_replaced_rows(_read(source, split), replace)))


def _table(name: str, read: Sequence[Row], wanted: Mapping[str, str]) -> Table:
    if not read:
        raise DataError(f"{name} holds no rows: there is nothing to learn from. Name a source that has some.")
    there = tuple(dict.fromkeys(chain.from_iterable(row.values for row in read)))
    for ours, theirs in wanted.items():
        if theirs not in there:
            raise DataError(
                f"columns.{ours} names column {theirs!r}, which {name} does not have: its columns are "
                f"{', '.join(there)}. {did_you_mean(theirs, there)}"
            )
    if wanted:
        read = [_renamed(row, wanted) for row in read]
    return Table(name, tuple(read), tuple(dict.fromkeys((*there, *wanted))), frozenset(wanted))


def _renamed(row: Row, wanted: Mapping[str, str]) -> Row:
    others = {name: value for name, value in row.values.items() if name not in wanted}
    values = others | {ours: row.values[theirs] for ours, theirs in wanted.items() if theirs in row.values}
    return dataclasses.replace(row, values=values, theirs=wanted)


def _replaced_rows(rows: Iterator[Row], replace: Mapping[str, str]) -> Iterator[Row]:
    if not replace:
        return rows
    return (dataclasses.replace(row, values=_replaced(row.values, replace)) for row in rows)


def _replaced(value: Any, replace: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in replace.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, Mapping):
        return {name: _replaced(part, replace) for name, part in value.items()}
    return [_replaced(part, replace) for part in value] if isinstance(value, list) else value


def _read(source: str, split: str) -> Iterator[Row]:
    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, or a name that no file can have
        raise DataError(
            f"source {shortened(source)} names no file: {error}. There is nothing to read. Correct the path."
        ) from error
    if is_folder:
        return _folder_rows(source, path, split)
    if not exists:
        if _HUB_ID.fullmatch(source) and not source.endswith(_SUFFIXES):
            return _dataset_rows(source, _hub_dataset(source, split))
        raise DataError(
            f"{source} does not exist (looked from {Path.cwd()}): there is nothing to read. "
            "Correct the path, or name a hub data set as organisation/name."
        )
    if source.endswith(".parquet"):
        return _dataset_rows(source, _parquet_dataset(source, path))
    kind = path.name.removesuffix(".gz")
    for suffix, reader in ((".jsonl", _json_line_rows), (".json", _json_rows), (".csv", _csv_rows)):
        if kind.endswith(suffix):
            return reader(source, _content(source, path))
    raise DataError(f"{source} is of a kind that is not read: known are {', '.join(_SUFFIXES)}. Convert the file.")


def _content(source: str, path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content.startswith(_GZIP):  # some fetchers drop the suffix, no text begins so
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}. Check the file, or fetch it again.") from error
    if kind := next((kind for start, kind in _PACKED.items() if content.startswith(start)), None):
        raise DataError(
            f"{source} holds a {kind} file, whatever its name: only gzip is unpacked. Unpack or convert it."
        )
    return content.removeprefix(b"\xef\xbb\xbf")


def _memory_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    if hasattr(rows, "features"):
        return _dataset_rows(IN_MEMORY, rows)
    return (_row(IN_MEMORY, number, values, _FROM_ONE) for number, values in enumerate(rows, start=1))


def _row(
    source: str, number: int, values: object, counting: str, names: Mapping[str, Sequence[str]] | None = None
) -> Row:
    if not isinstance(values, Mapping):
        raise DataError(
            f"{source}, row {number}: {type(values).__name__} {shortened(values)} is no row, which is an object "
            f"with named fields ({counting}). Write it as {{name: value, ...}}."
        )
    named = dict(values)
    for name, classes in (names or {}).items():
        if isinstance(named.get(name), int):
            named[name] = classes[named[name]] if named[name] >= 0 else None
    return Row(source, number, named, counting)


def _json_line_rows(source: str, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(io.BytesIO(content), start=1):
        if line.strip():
            yield _row(source, number, _parsed(f"{source}, line {number}", line.strip()), _LINES)


def _json_rows(source: str, content: bytes) -> Iterator[Row]:
    if _is_json_lines(content):
        return _json_line_rows(source, content)
    return _json_list_rows(source, _parsed(source, content))


def _is_json_lines(content: bytes) -> bool:
    """Whether the first line is an object of its own: much JSON on the hub is JSON lines under the shorter name."""
    first, _, rest = content.strip().partition(b"\n")
    if not (first.startswith(b"{") and rest.strip()):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _json_list_rows(source: str, parsed: object) -> Iterator[Row]:
    rows = parsed.get("instances") if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list):
        raise DataError(
            f"{source} holds one {type(parsed).__name__}: a data set is a list of objects, or an object with such a "
            "list in `instances`. Put the rows into a list."
        )
    for number, values in enumerate(rows, start=1):
        yield _row(source, number, values, _FROM_ONE)


def _parsed(place: str, content: bytes) -> object:
    text, closed = _decoded(place, content), count()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        number, values = next(closed), dict(pairs)
        if len(values) < len(pairs):
            key = next(key for key, uses in Counter(key for key, _ in pairs).items() if uses > 1)
            within = f", in the object that ends in line {_line_of_object(text, number)}" if "\n" in text else ""
            raise DataError(
                f"{place}{within}: key {shortened(key)} stands twice in one object: only one of the two can count. "
                "Remove the other."
            )
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        within = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(
            f"{place}: no valid JSON, {error.msg} at {within}column {error.colno}: the row cannot be read. "
            "Repair it; a file cut short by a full disk or a broken download ends like this."
        ) from error
    except ValueError as error:  # Python converts no whole number of more than 4300 digits
        long = max(re.finditer(r"[0-9]+", text), key=lambda number: len(number[0]))
        line = text.count("\n", 0, long.start()) + 1
        within = f", line {line}" if "\n" in text else ""
        raise DataError(
            f"{place}{within}: a number of {len(long[0])} digits: the row cannot be read. Shorten it, or put it in "
            "quotes as text."
        ) from error
    except RecursionError as error:
        raise DataError(f"{place}: JSON nested too deeply to be read: rows are flat. Repair it.") from error


def _line_of_object(text: str, number: int) -> int:
    """The line in which an object of a JSON text ends, `number` others having ended before."""
    ends = (found for found in re.finditer(r'"(?:[^"\\]|\\.)*"|\}', text) if found[0] == "}")
    return text.count("\n", 0, next(islice(ends, number, None)).start()) + 1


def _decoded(place: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place}: byte {content[error.start]:#04x} in its line {line} is not UTF-8: the text cannot be read. "
            "Save the file as UTF-8."
        ) from error


def _csv_rows(source: str, content: bytes) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_decoded(source, content), newline=""), strict=True)
    limit = csv.field_size_limit(sys.maxsize)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{source} names a column twice: {', '.join(header)}. Give every column its own name.")
        lines = (values or [""] for values in reader) if len(header) == 1 else filter(None, reader)
        for number, values in enumerate(lines, start=1):
            if len(values) != len(header):
                raise DataError(
                    f"{source}, row {number} (ends on line {reader.line_num}): {len(values)} fields where the header "
                    f"has {len(header)}: they cannot be told apart. Put text with commas or line breaks into quotes."
                )
            yield _row(source, number, dict(zip(header, values, strict=True)), _AFTER_HEADER)
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: no valid CSV, {error}. Repair the line.") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_dataset(source: str, path: Path) -> Any:
    with _quiet_datasets(source) as datasets, tempfile.TemporaryDirectory() as cache:
        return datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)


def _folder_rows(source: str, path: Path, split: str) -> Iterator[Row]:
    """Rows of a saved data set, or of the split's files in a folder as on the hub.

    Files of the kinds that are read here are read one by one, so that their rows may differ in columns and types;
    others in the way of `datasets`, which wants them all alike.
    """
    with _quiet_datasets(source) as datasets:
        if (path / "state.json").exists():
            return _dataset_rows(source, datasets.load_from_disk(str(path), keep_in_memory=True))
        if (path / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(path), keep_in_memory=True)
            if split not in splits:
                raise _no_split(source, split, splits)
            return _dataset_rows(source, splits[split])
        with tempfile.TemporaryDirectory() as cache:
            folder = str(path.resolve())
            found = datasets.load_dataset_builder(folder, cache_dir=cache).config.data_files or {}
            files = [str(file) for file in found.get(split, ())]
            if found and not files and split.isidentifier():
                raise _no_split(source, split, found)
            if files and all(file.endswith(_SUFFIXES) for file in files):
                return chain.from_iterable(_read(file, split) for file in files)
            return _dataset_rows(
                source, datasets.load_dataset(folder, split=split, cache_dir=cache, keep_in_memory=True)
            )


def _no_split(source: str, split: str, found: Iterable[object]) -> DataError:
    return DataError(f"{source} has no split {split!r}: it has {', '.join(map(str, found))}. Name one of these.")


def _hub_dataset(source: str, split: str) -> Any:
    with hub_access(source, "dataset"), _quiet_datasets(source) as datasets:
        return datasets.load_dataset(source, split=split)


def _dataset_rows(source: str, dataset: Any) -> Iterator[Row]:
    features = dataset.features if isinstance(dataset.features, Mapping) else {}
    names = {name: kind.names for name, kind in features.items() if hasattr(kind, "int2str")}
    with _raise_data_errors(source):
        for number, values in enumerate(_plain(dataset), start=1):
            yield _row(source, number, values, _FROM_ONE, names)


def _plain(dataset: Any) -> Iterator[Any]:
    """The rows as plain values. Sounds and pictures stay as they lie: what nobody uses need not be readable."""
    form = getattr(dataset, "format", None)
    if form is None or form["type"] == "custom":  # a stream, or rows that the user's own function makes
        return iter(dataset)
    tables = dataset.with_format("arrow", columns=form["columns"]).iter(batch_size=1000)
    return chain.from_iterable(table.to_pylist() for table in tables)


@contextmanager
def _quiet_datasets(source: str) -> Iterator[Any]:
    """The `datasets` library without progress bars and without its download counter; its errors become ours."""
    import datasets  # here: it takes a second to import, and most data does not need it

    bars_were_off = datasets.utils.are_progress_bars_disabled()
    counted = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.utils.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        with _raise_data_errors(source):
            yield datasets
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        if not bars_were_off:
            datasets.utils.enable_progress_bars()


@contextmanager
def _raise_data_errors(source: str) -> Iterator[None]:
    """Every error of another library becomes a DataError: what a damaged file brings about there is of any type."""
    try:
        yield
    except HydralignError:
        raise
    except Exception as error:
        remedy = "Check the name, the split and the connection, or name a file."
        if source == IN_MEMORY:
            remedy = "Repair the rows, or take out the column that fails."
        elif Path(source).expanduser().exists():
            kind = "folder" if Path(source).expanduser().is_dir() else "file"
            remedy = f"Check the {kind}, or make or fetch it again."
        where = "" if source == IN_MEMORY else describe_search(source)
        raise DataError(f"{source} cannot be read: {_cause(error)}{where}. {remedy}") from error


def _cause(error: BaseException) -> str:
    """The message of the first error that led to this one: `datasets` puts general ones on top of it."""
    chained = [error]
    while (cause := chained[-1].__cause__) is not None:
        chained.append(cause)
    first = next((one for one in reversed(chained) if str(one).strip()), error)
    message = " ".join(str(first).split())[:600].rstrip(". ")
    if not message:
        return type(first).__name__
    # Errors of other types say too little by themselves: a KeyError is the key alone.
    return message if isinstance(first, OSError | ValueError | ImportError) else f"{message} ({type(first).__name__})"
