"""From a source to records: read, draft, filter, tokenise, split, and account for every row.

Every kind of data goes the same way; the kinds differ in how a row becomes a draft, and prompts are tokenised in
the end. Rows are worked on in blocks, so that a `limit` stops early and tokenisers see many texts at once.

A text that prompts are cut out of decides on the row's part; on which side it is held out, the cut prompt decides,
since that is what a policy sees.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from hydralign.config.data import (
    RESERVED_COLUMNS,
    FilterConfig,
    PartConfig,
    PromptSourceConfig,
    SourceConfig,
    SourceSplit,
    require_read_columns,
)
from hydralign.data.comparisons import comparison_drafter
from hydralign.data.demonstrations import demonstration_drafter, labelled_drafter
from hydralign.data.drafts import Draft, Drafter, LeftOut
from hydralign.data.filters import within_bounds
from hydralign.data.prompts import cut_to_prompts, prompt_drafter, tokenised
from hydralign.data.reading import IN_MEMORY, read_table
from hydralign.data.report import DataReport, DataSet
from hydralign.data.rows import EmptyTextError, Row, Table
from hydralign.data.spelled import counted, special_tokens, spelled_in, texts_of
from hydralign.data.splits import in_part, split_rows
from hydralign.errors import ConfigError, DataError
from hydralign.types import Demonstration, LabelledText, Preference, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = TypeVar("Record")
Settings = TypeVar("Settings", bound=SourceConfig)
InMemory = Iterable[Mapping[str, Any]]
Source = (
    SourceConfig | str | os.PathLike[str] | Mapping[str, Any] | Iterable[str | os.PathLike[str] | Mapping[str, Any]]
)
"""A config, the path of a file, the settings of a config, a list of paths, or rows."""

_BLOCK = 2048


@dataclass(frozen=True)
class _Kind(Generic[Record]):
    """How one kind of data is made: a drafter for a table, and what turns a block of drafts into records."""

    drafter: Callable[[Table], Drafter[Record]]
    finish: Callable[[Sequence[Draft[Record]]], Sequence[Record | LeftOut]]
    key: Callable[[Record], str] | None = None
    """The prompt that decides on the side of a record; None is its draft's key."""
    seen: Callable[[Record], Hashable] | None = None
    """What a model sees of the record's prompt."""


@dataclass(frozen=True)
class _Gathered(Generic[Record]):
    """One source's records, each with the key of its split, and counts of everything else."""

    source: str
    rows_read: int
    keyed: tuple[tuple[str, Record], ...]
    dropped: Counter[str]
    spelled: dict[int, set[str]]
    """Special tokens that a record's own texts spell, by the record's id."""
    shortened: int = 0


def load_prompts(
    config: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    rows: InMemory | None = None,
    held_out_limit: int | None = None,
) -> DataSet[Prompt]:
    """Prompts to answer, tokenised; with `config.cut`, the first tokens of texts, whose lengths `seed` draws.

    `config` may be the file's path, its settings as a mapping, or rows in memory. A prompt's `columns` are all columns
    of its row but those with a reserved name, which belong to sampled things. `rows` stand in for `config.source`.
    Of a held-out source at most `held_out_limit` rows are used, chosen as `config.limit` chooses. Raises DataError
    (RowError for one row), TokenizerError for chats without a template, ConfigError for what is no source or no
    tokenizer.
    """
    config, rows = source_config(PromptSourceConfig, config, rows)
    if not callable(tokenizer):
        raise ConfigError(
            f"tokenizer={tokenizer!r:.80} is none: prompts could not be encoded. Give the policy's, policy.tokenizer."
        )

    def finish(drafts: Sequence[Draft[Prompt]]) -> Sequence[Prompt | LeftOut]:
        if config.cut is None:
            return tokenised(drafts, tokenizer)
        return cut_to_prompts(drafts, tokenizer, config.cut, seed=seed)

    withheld: set[str] = set()

    def drafter(table: Table) -> Drafter[Prompt]:
        withheld.update(RESERVED_COLUMNS & set(table.columns))
        return prompt_drafter(table, tokenizer, from_text=config.cut is not None)

    key = None if config.cut is None else _prompt_text
    loaded = _load(config, tokenizer, rows, _Kind(drafter, finish, key=key, seen=_prompt_ids), held_out_limit)
    return replace(loaded, report=replace(loaded.report, withheld=tuple(sorted(withheld))))


def load_demonstrations(
    config: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    rows: InMemory | None = None,
    held_out_limit: int | None = None,
) -> DataSet[Demonstration]:
    """Texts to imitate, not tokenised. The tokenizer is needed for chats and for filters on tokens only.

    `rows` and `held_out_limit` are those of `load_prompts`. Raises as it does.
    """
    config, rows = _source_of("demonstrations", config, rows)
    return _load(
        config, tokenizer, rows, _Kind(lambda table: demonstration_drafter(table, tokenizer), _records), held_out_limit
    )


def load_comparisons(
    config: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    rows: InMemory | None = None,
    held_out_limit: int | None = None,
) -> DataSet[Preference]:
    """Pairs of answers, not tokenised; pairs of equal answers are left out and counted.

    The tokenizer is needed for chats and for filters on tokens only. `rows` and `held_out_limit` are those of
    `load_prompts`. Raises as it does.
    """
    config, rows = _source_of("comparisons", config, rows)
    return _load(
        config, tokenizer, rows, _Kind(lambda table: comparison_drafter(table, tokenizer), _records), held_out_limit
    )


def load_labelled(
    config: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    rows: InMemory | None = None,
    held_out_limit: int | None = None,
) -> DataSet[LabelledText]:
    """Texts with the names of their classes; a label that is a number becomes its digits.

    The tokenizer is needed for filters on tokens only. `rows` and `held_out_limit` are those of `load_prompts`. Raises
    as it does.
    """
    config, rows = _source_of("labelled", config, rows)
    return _load(config, tokenizer, rows, _Kind(labelled_drafter, _records), held_out_limit)


def source_config(
    kind: type[Settings], source: Source, rows: InMemory | None = None
) -> tuple[Settings, InMemory | None]:
    """The settings that `source` stands for, and the rows in memory, if it holds them. Raises ConfigError."""
    if isinstance(source, kind):
        return source, rows
    if isinstance(source, SourceConfig):
        return kind(**source.model_dump()), rows
    if isinstance(source, Mapping):
        return kind(**source), rows
    if isinstance(source, str | os.PathLike):
        return kind(source=os.fspath(source)), rows
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | os.PathLike) for one in source):
        return kind(source=tuple(map(os.fspath, source))), rows
    if isinstance(source, Iterable):
        return kind(source=IN_MEMORY), cast(InMemory, source)
    raise ConfigError(
        f"source={source!r:.80} of type {type(source).__name__}: there is nothing to read. Give the path of a file, "
        "rows, or a SourceConfig."
    )


def _source_of(kind: str, source: Source, rows: InMemory | None) -> tuple[SourceConfig, InMemory | None]:
    """`source_config` of a kind whose records carry all other columns. Raises ConfigError for slips in names."""
    config, rows = source_config(SourceConfig, source, rows)
    try:
        require_read_columns(kind, config.columns, others=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config, rows


def _load(
    config: SourceConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    rows: InMemory | None,
    kind: _Kind[Record],
    held_out_limit: int | None,
) -> DataSet[Record]:
    if tokenizer is None and (config.filter.min_tokens is not None or config.filter.max_tokens is not None):
        raise ConfigError(
            "filter counts tokens, and no tokenizer is given: nobody can count. Give one, or use characters."
        )
    reading: dict[str, Any] = {"columns": config.columns, "replace": config.replace}
    table = read_table(config.source, split=config.split, rows=rows, **reading)
    columns = dict.fromkeys(table.columns)
    main, other = _gather(table, config.filter, tokenizer, kind, limit=config.limit, part=config.part), None
    if isinstance(config.held_out, SourceSplit):
        table = read_table(config.held_out.source, split=config.held_out.split, **reading)
        columns |= dict.fromkeys(table.columns)
        other = _gather(table, config.filter, tokenizer, kind, limit=held_out_limit)
    sides = split_rows(
        main.keyed,
        config.held_out,
        other.keyed if other else (),
        seen=kind.seen,
        common_stay=kind.key is not None,
    )
    dropped = main.dropped + (other.dropped if other else Counter())
    spelled = main.spelled | (other.spelled if other else {})
    if sides.leaking:
        dropped["whose prompt is held out"] = sides.leaking
    report = DataReport(
        source=f"{main.source} (held out: {other.source})" if other else main.source,
        rows_read=main.rows_read + (other.rows_read if other else 0),
        train=len(sides.train),
        held_out=len(sides.held_out),
        dropped=dict(dropped),
        columns=tuple(columns),
        shortened=main.shortened + (other.shortened if other else 0),
        spelled=counted(spelled.get(id(record), set()) for record in (*sides.train, *sides.held_out)),
    )
    if not sides.train:
        raise DataError(
            f"{report.describe()} Nothing is left to train on: there is nothing to learn. Loosen the filter, hold out "
            "less, or name a source with more rows."
        )
    return DataSet(sides.train, sides.held_out, report)


def _gather(
    table: Table,
    bounds: FilterConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    kind: _Kind[Record],
    *,
    limit: int | None = None,
    part: PartConfig | None = None,
) -> _Gathered[Record]:
    kept: list[tuple[int, tuple[str, Record]]] = []
    dropped: Counter[str] = Counter()
    spelled: dict[int, set[str]] = {}
    special, shortened = special_tokens(tokenizer), 0
    drafter = kind.drafter(table)
    order = range(len(table.rows)) if limit is None else table.order
    rows = [table.rows[place] for place in order]
    starts = range(0, len(rows), _BLOCK)
    blocks = (_worked(rows[start : start + _BLOCK], drafter, bounds, part, tokenizer, kind) for start in starts)
    for done, (place, outcome) in enumerate(zip(order, chain.from_iterable(blocks), strict=False)):
        if len(kept) == limit:
            dropped[f"beyond the limit of {limit:,} usable rows"] = len(rows) - done
            break
        if isinstance(outcome, LeftOut):
            dropped[outcome.reason] += 1
        else:
            kept.append((place, outcome[:2]))
            shortened += outcome[2]
            if found := spelled_in(outcome[3], special):
                spelled[id(outcome[1])] = found
    kept.sort(key=lambda one: one[0])
    return _Gathered(table.source, len(rows), tuple(keyed for _, keyed in kept), dropped, spelled, shortened)


def _worked(
    rows: Sequence[Row],
    drafter: Drafter[Record],
    bounds: FilterConfig,
    part: PartConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    kind: _Kind[Record],
) -> Iterator[tuple[str, Record, bool, tuple[str, ...]] | LeftOut]:
    """What became of each row, in order: the key of its split, the record, whether a template shortened it, and what
    its author wrote of it.
    """
    drafts = within_bounds([_drafted(row, drafter, bounds) for row in rows], bounds, tokenizer)
    finished = iter(kind.finish([draft for draft in drafts if isinstance(draft, Draft)]))
    for draft in drafts:
        if isinstance(draft, LeftOut):
            yield draft
        else:
            record = next(finished)
            if isinstance(record, LeftOut):
                yield record
            elif part and not in_part(draft.key, part):
                yield LeftOut(f"outside the part {part.low:g}-{part.high:g} %")
            else:
                written = texts_of(record) if draft.written is None else draft.written
                yield (kind.key(record) if kind.key else draft.key), record, draft.shortened, written


def _drafted(row: Row, drafter: Drafter[Record], bounds: FilterConfig) -> Draft[Record] | LeftOut:
    try:
        return drafter(row)
    except EmptyTextError as error:
        if bounds.empty == "error":
            raise
        return LeftOut(f"with an empty {error.field}")


def _records(drafts: Sequence[Draft[Record]]) -> Sequence[Record | LeftOut]:
    return [draft.record for draft in drafts]


def _prompt_text(prompt: Prompt) -> str:
    return prompt.text


def _prompt_ids(prompt: Prompt) -> Hashable:
    return prompt.token_ids
