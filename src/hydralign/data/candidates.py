"""What every kind of data has in common: rows become candidates, and those outside the filter's bounds are left out.

Bounds on the length of texts are in characters and tokens, both inclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hydralign.config.data import FilterConfig
from hydralign.data.rows import Row
from hydralign.data.tokens import encode_prompts
from hydralign.types import Demonstration, LabelledText, Preference, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = TypeVar("Record")


@dataclass(frozen=True)
class Candidate(Generic[Record]):
    """A record that may be used.

    `shortened` says that a chat template left out part of an answer, `cut` that a prompt that was too long lost part of
    itself. `written` is what the row's author wrote of the record, where a template wrote the rest of it; None stands
    for all of its texts. `measured` is what bounds on length measure, where that is not the record's texts. `key` is
    the text that decides on which side of a split the record falls, where that is not its prompt.
    """

    record: Record
    shortened: bool = False
    written: tuple[str, ...] | None = None
    measured: str | None = None
    key: str | None = None
    cut: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """What the row's author wrote of that which becomes token ids."""
        return texts_of(self.record) if self.written is None else self.written


@dataclass(frozen=True)
class LeftOut:
    """A row that is not used, and why, in words that fit behind a count."""

    reason: str


Outcome = Candidate[Record] | LeftOut
Parser = Callable[[Row], Outcome[Record]]
"""What becomes of one row of a table."""


def texts_of(record: object) -> tuple[str, ...]:
    """The texts of a record that become token ids, its prompt first."""
    match record:
        case Prompt(text=text) | LabelledText(text=text):
            return (text,)
        case Demonstration(prompt=prompt, completion=completion):
            return (prompt, completion)
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            return (prompt, chosen, rejected)
    raise AssertionError(f"a record of type {type(record).__name__}")


def split_key(candidate: Candidate[Any]) -> str:
    """The text that decides on which side of a split a candidate falls: its prompt, or its only text."""
    return candidate.key if candidate.key is not None else next(filter(None, texts_of(candidate.record)), "")


def within_bounds(
    outcomes: Sequence[Outcome[Record]], bounds: FilterConfig, tokenizer: PreTrainedTokenizerBase | None
) -> list[Outcome[Record]]:
    """The same outcomes in the same order, candidates outside the bounds replaced by the reason.

    A candidate is measured by all of its texts, each answer together with its prompt, or by its `measured`. Tokens are
    counted as prompts are encoded, and only where a bound on them and a tokenizer are given.
    """
    low, high = bounds.min_characters, bounds.max_characters
    bounded = [_bounded(one, [len(text) for text in _measured(one)], low, high, "characters") for one in outcomes]
    low, high = bounds.min_tokens, bounds.max_tokens
    if tokenizer is None or (low is None and high is None):
        return bounded
    counts = iter(len(ids) for ids in encode_prompts(tokenizer, [text for one in bounded for text in _measured(one)]))
    return [_bounded(one, [next(counts) for _ in _measured(one)], low, high, "tokens") for one in bounded]


def _measured(outcome: Outcome[Record]) -> list[str]:
    if isinstance(outcome, LeftOut):
        return []
    if outcome.measured is not None:
        return [outcome.measured]
    prompt, *answers = texts_of(outcome.record)
    return [prompt + answer for answer in answers] or [prompt]


def _bounded(
    outcome: Outcome[Record], lengths: Sequence[int], low: int | None, high: int | None, unit: str
) -> Outcome[Record]:
    if lengths and low is not None and min(lengths) < low:
        return LeftOut(f"shorter than {low:,} {unit}")
    if lengths and high is not None and max(lengths) > high:
        return LeftOut(f"longer than {high:,} {unit}")
    return outcome
