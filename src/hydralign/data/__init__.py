"""Data sets: read, check, filter, cut, split, and account for every row.

`load_prompts`, `load_demonstrations`, `load_comparisons` and `load_labelled` take a data config (and rows in memory
instead of its source, if wanted) and return a `DataSet`: both sides of the split and a report. `training_texts` is
what a new tokenizer is made from. `Stream` makes batches. `choose_rows` takes a few rows where not all are wanted.
"""

from hydralign.data.loading import load_comparisons, load_demonstrations, load_labelled, load_prompts, training_texts
from hydralign.data.report import DataReport, DataSet
from hydralign.data.stream import PromptStream, Stream
from hydralign.data.subsets import choose_rows, fingerprint
from hydralign.data.tokens import encode_prompts

__all__ = [
    "DataReport",
    "DataSet",
    "PromptStream",
    "Stream",
    "choose_rows",
    "encode_prompts",
    "fingerprint",
    "load_comparisons",
    "load_demonstrations",
    "load_labelled",
    "load_prompts",
    "training_texts",
]
