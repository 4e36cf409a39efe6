"""Several rewards as one: every answer checked, weighted and summed, every term logged apart and unweighted.

    scores_B[i]          sum over terms of weight · score, for entries that are one number per answer
    token_scores[i][t]   the same sum for entries that are one number per completion token

A term that returned None for a row adds 0 there. `minus_reference` subtracts the score that the same reward gives
to a reference answer out of a column (Stiennon et al. 2020 normalise so), so that reference answers stand at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isclass
from typing import Any

import torch

from hydralign.errors import NonFiniteError, RewardError
from hydralign.rewards.functions import call
from hydralign.rewards.protocol import Reward
from hydralign.types import Scores

Entry = float | tuple[float, ...] | None
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class RewardTerm:
    """One reward in the sum. `reward` may take fewer arguments than `Reward`; it gets those that it names."""

    name: str
    reward: Reward | Callable[..., Any]
    weight: float = 1.0
    minus_reference: str | None = None


def as_terms(
    reward: Callable[..., Any] | RewardTerm | Sequence[RewardTerm | Callable[..., Any]],
) -> tuple[RewardTerm, ...]:
    """A function, a term or several of both as terms; functions get their own names. Raises RewardError for others."""
    parts: list[Any] = list(reward) if isinstance(reward, list | tuple) else [reward]
    for part in parts:
        if not isinstance(part, RewardTerm) and (not callable(part) or isclass(part)):
            raise RewardError(
                f"{part!r:.80} of type {type(part).__name__} is no reward: answers could not be scored. Give a "
                "function (prompts, completions, **columns), a RewardTerm, or a list of them; "
                "hydralign.rewards.load_function finds a function by its name."
            )
    if all(isinstance(part, RewardTerm) for part in parts):
        return tuple(parts)
    names = unique_names(
        part.name if isinstance(part, RewardTerm) else getattr(part, "__name__", "reward") for part in parts
    )
    return tuple(
        replace(part, name=name) if isinstance(part, RewardTerm) else RewardTerm(name, part)
        for name, part in zip(names, parts, strict=True)
    )


def unique_names(names: Iterable[str]) -> list[str]:
    """The names in order, a repeated one numbered: `length`, `length_2`, `length_3`."""
    taken: set[str] = set()
    result = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        result.append(candidate)
    return result


def score_rollout(
    terms: Sequence[RewardTerm],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    finished: Sequence[bool],
    completion_tokens: Sequence[Sequence[str]],
) -> Scores:
    """Calls every term once on all rows. `scores_B` is fp32 on the CPU; `terms` hold per-token entries as their sum.

    Raises RewardError for a wrong count, type, length or column, and
    NonFiniteError (where: `reward/<name>`) for NaN, infinity and what fp32 cannot hold.
    """
    if not terms or len({term.name for term in terms}) < len(terms):
        names = ", ".join(repr(term.name) for term in terms) or "none"
        raise RewardError(f"the reward terms are {names}: each needs a name of its own. Name at least one, and apart.")
    columns = {**columns, "finished": list(finished), "completion_tokens": [list(row) for row in completion_tokens]}
    for name, column in (("completions", completions), *columns.items()):
        if len(column) != len(prompts):
            raise RewardError(
                f"column {name!r} has {len(column)} entries for {len(prompts)} prompts: rows would be scored with "
                "another row's facts. Give one entry per row."
            )
    totals = [0.0] * len(prompts)
    per_token: list[tuple[float, ...] | None] = [None] * len(prompts)
    logged: dict[str, list[float | None]] = {}
    cut: dict[str, tuple[int, int]] = {}
    for term in terms:
        entries, cut_texts = _entries_of(term, prompts, completions, columns)
        if cut_texts is not None:
            cut[term.name] = cut_texts
        logged[term.name] = [math.fsum(entry) if isinstance(entry, tuple) else entry for entry in entries]
        for row, entry in enumerate(entries):
            if isinstance(entry, tuple):
                before = per_token[row] or (0.0,) * len(entry)
                per_token[row] = tuple(b + term.weight * e for b, e in zip(before, entry, strict=True))
            elif entry is not None:
                totals[row] += term.weight * entry
    dense = tuple(per_token) if any(row is not None for row in per_token) else None
    return Scores(torch.tensor(totals, dtype=torch.float32), dense, logged, cut)


def require_applied(applied: Mapping[str, float], rows: int) -> None:
    """Raise RewardError for a reward that applied to none of `rows` rows.

    Not part of `score_rollout`, which may see a part of the batch only: pass counts over all parts and processes.
    """
    for name, count in applied.items():
        if rows and not count:
            raise RewardError(
                f"reward {name!r} returned None for all {rows} rows: it says nothing about this batch. "
                "Return a number for the rows it applies to, or take it out of the recipe."
            )


def _entries_of(
    term: RewardTerm, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> tuple[list[Entry], tuple[int, int] | None]:
    """The term's checked entries, minus those of the reference answers where it asks for that; and how many texts were
    cut to be read, of how many, reference answers among them. None where the reward counts none.
    """
    before = getattr(term.reward, "truncated", None)

    def cut_of(texts: int) -> tuple[int, int] | None:
        return (getattr(term.reward, "truncated", before) - before, texts) if isinstance(before, int) else None

    returned = call(term.reward, prompts, completions, columns, name=term.name)
    entries = _checked(returned, term.name, prompts, columns["completion_tokens"])
    if term.minus_reference is None:
        return entries, cut_of(len(prompts))
    references = _references(term, term.minus_reference, columns)
    # Reference answers are whole, and were never sampled: they have no completion tokens.
    others = {name: column for name, column in columns.items() if name != "completion_tokens"}
    others["finished"] = [True] * len(references)
    returned = call(term.reward, prompts, references, others, name=term.name)
    bases = _checked(returned, term.name, prompts, None)
    return [_difference(term, entry, base) for entry, base in zip(entries, bases, strict=True)], cut_of(
        2 * len(prompts)
    )


def require_reference_column(name: str, column: str, columns: Iterable[str]) -> None:
    """Raise RewardError unless the data have the column whose score the reward `name` subtracts."""
    if column not in columns:
        raise RewardError(
            f"reward {name!r} wants column {column!r} as its reference: the data has no such column. "
            f"Columns here: {', '.join(sorted(columns))}."
        )


def _references(term: RewardTerm, column: str, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    require_reference_column(term.name, column, columns)
    for row, text in enumerate(columns[column]):
        if not isinstance(text, str):
            raise RewardError(
                f"column {column!r} holds {text!r} in row {row}: reward {term.name!r} needs a reference answer in "
                "every row. Fill the column or leave such rows out."
            )
    return list(columns[column])


def _difference(term: RewardTerm, entry: Entry, base: Entry) -> Entry:
    if isinstance(entry, tuple) or isinstance(base, tuple):
        raise RewardError(
            f"reward {term.name!r} speaks per token and has minus_reference: the reference answer has other tokens, "
            "so there is nothing to subtract token by token. Drop minus_reference or return one number per row."
        )
    return None if entry is None or base is None else entry - base


def _checked(
    returned: Any, name: str, prompts: Sequence[str], completion_tokens: Sequence[Sequence[str]] | None
) -> list[Entry]:
    """What a reward returned, as plain numbers. `completion_tokens` None leaves per-token lengths unchecked."""
    returned = _as_list(returned, name)
    if not isinstance(returned, list | tuple):
        raise RewardError(
            f"reward {name!r} returned {returned!r:.60} of type {type(returned).__name__}: a list with one entry per "
            f"row is needed. Return a list of {len(prompts)} numbers."
        )
    if len(returned) != len(prompts):
        raise RewardError(
            f"reward {name!r} returned {len(returned)} entries for {len(prompts)} rows: it is unclear which belongs "
            "to which. Return one entry per row, None where the reward does not apply; a tensor has the shape "
            f"[{len(prompts)}] or [{len(prompts)}, 1]."
        )
    values = [_as_list(value, name) for value in returned]
    lists = [value for value in values if isinstance(value, list | tuple)]
    if all(len(value) == 1 for value in lists):
        # A column of shape [B, 1], as a model's head gives it: one score per row, put where a score per token of a
        # completion with one token would be.
        column = [value[0] if isinstance(value, list | tuple) else value for value in values]
        return [None if x is None else _number(x, name, row, prompts[row]) for row, x in enumerate(column)]
    entries: list[Entry] = []
    for row, value in enumerate(values):
        if not isinstance(value, list | tuple):
            entries.append(None if value is None else _number(value, name, row, prompts[row]))
            continue
        if completion_tokens is not None and len(value) != len(completion_tokens[row]):
            raise RewardError(
                f"reward {name!r} returned {len(value)} numbers for row {row}, whose completion has "
                f"{len(completion_tokens[row])} tokens: they cannot be put on tokens. "
                "Return one number per row, or one per entry of completion_tokens[row]."
            )
        entries.append(tuple(_number(item, name, row, prompts[row]) for item in value))
    return entries


def _as_list(value: Any, name: str) -> Any:
    """A tensor or array as plain numbers, everything else as it is."""
    if not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except Exception as error:
        kind = f"{value.layout} tensor on {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise RewardError(
            f"reward {name!r} returned a {kind}, whose numbers cannot be read ({' '.join(str(error).split()):.120}): "
            "the answers have no score. Return a list of floats, or a dense tensor that holds them."
        ) from error


def _number(value: Any, name: str, row: int, prompt: str) -> float:
    value = _as_list(value, name)
    if not isinstance(value, int | float):
        raise RewardError(
            f"reward {name!r} returned {value!r:.60} of type {type(value).__name__} for row {row}: that is no number. "
            "Return a float, a flat list of floats (one per completion token) or None."
        )
    if not abs(value) <= LARGEST:
        raise NonFiniteError(
            f"reward/{name}",
            f"reward {name!r} gave {value!r:.40} for row {row}, whose prompt begins {prompt[:60]!r}: one such score "
            "spoils the whole update. Correct the reward, or return None for rows that it does not apply to.",
        )
    return float(value)
