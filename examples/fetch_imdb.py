"""Fetches film reviews from the hub and writes them as the files that the IMDB recipes read.

    python examples/fetch_imdb.py stanfordnlp/imdb ../shared/data/imdb

Needs a network. The data set is the Large Movie Review Dataset (Maas et al. 2011, "Learning Word Vectors for Sentiment
Analysis"). Texts that occur twice, and training texts that occur in the test split, are left out and counted.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SPLITS = {"test": "test", "train": "train", "unsupervised": "unlabelled"}
"""Split on the hub: file. Earlier ones keep the texts that later ones have too."""


def fetch(hub_id: str, folder: Path) -> None:
    """Write FOLDER/{train,test,unlabelled}.jsonl.gz, each when it is complete."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, name in SPLITS.items():
        rows = datasets.load_dataset(hub_id, split=split)
        path, unfinished = folder / f"{name}.jsonl.gz", folder / f".{name}.partial"
        with gzip.open(unfinished, "wt", encoding="utf-8") as file:
            written = sum(file.write(line) > 0 for line in lines(rows, seen))
        unfinished.rename(path)
        print(f"{path}: {written:,} reviews; {len(rows) - written:,} that occur elsewhere were left out.")


def lines(rows: Iterable[Mapping[str, Any]], seen: set[str]) -> Iterator[str]:
    """Each new text as a line of JSON, with its label (1 positive, 0 negative) where it has one."""
    for row in rows:
        if row["text"] not in seen:
            seen.add(row["text"])
            label = {"label": row["label"]} if row.get("label") in (0, 1) else {}
            yield json.dumps({"text": row["text"], **label}, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/fetch_imdb.py HUB_ID FOLDER, such as stanfordnlp/imdb ../shared/data/imdb")
    fetch(sys.argv[1], Path(sys.argv[2]))
