"""Which rows are taken where fewer are wanted than there are, and the fingerprint of the rows that were taken.

Files are often sorted (by label, by length, by date), so the first rows of one are no fair sample of it. Rows are
therefore taken in the order of a hash of their content. Neither the order of the file nor what else stands in it
decides whether a row comes before another one, and a larger count takes a superset of a smaller one.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

Record = TypeVar("Record")

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def choose_rows(rows: Sequence[Record], count: int | None = None) -> tuple[Record, ...]:
    """`count` of these rows, or all of them, in the order of a hash of their content.

    A row is a mapping or one of the records of `types.py`; its token ids do not count. Of equal rows each copy has a
    place of its own in the order.
    """
    return tuple(rows[place] for place in hash_order(rows)[:count])


def hash_order(rows: Sequence[Any]) -> list[int]:
    """The places of all rows, in the order of a hash of their content."""
    copies: Counter[bytes] = Counter()
    order = []
    for place, row in enumerate(rows):
        content = _digest(row)
        order.append((blake2b(content + copies[content].to_bytes(8), digest_size=16).digest(), place))
        copies[content] += 1
    return [place for _, place in sorted(order)]


def fingerprint(rows: Sequence[Any]) -> str:
    """16 hexadecimal digits that differ for other rows, and for the same rows in another order."""
    digest = blake2b(digest_size=8)
    for row in rows:
        digest.update(_digest(row))
    return digest.hexdigest()


def _digest(row: Any) -> bytes:
    """A hash of what a row says. Fields that are None count like fields that are not there."""
    if dataclasses.is_dataclass(row):
        fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        fields.pop("token_ids", None)
        fields |= {"columns": _present(fields["columns"])} if "columns" in fields else {}
    else:
        fields = _present(row)
    try:
        content = json.dumps(fields, sort_keys=True, default=_spelled)
    except (TypeError, ValueError):  # keys of several types cannot be sorted, or a value holds itself
        content = _spelled(fields)
    return blake2b(content.encode(), digest_size=16).digest()


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _spelled(value: object) -> str:
    """The value in words, without the address that it has in this process."""
    return _ADDRESS.sub("", repr(value))
