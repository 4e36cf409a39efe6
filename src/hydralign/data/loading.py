"""From a source to records: read, parse, filter, tokenise, split, and account for every row.

Every kind of data goes the same way; the kinds differ in how a row becomes a candidate, and prompts are tokenised in
the end. Rows are worked on in blocks, so that a `limit` stops early and tokenisers see many texts at once.

A text that prompts are cut out of decides on the row's part; on which side it is held out, the cut prompt decides,
since that is what a policy sees, or the text, where the recipe says so. Demonstrations that are cut always go by text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from hydralign.config.data import (
    RESERVED_COLUMNS,
    DataConfig,
    DemonstrationSourceConfig,
    FilterConfig,
    HashSplit,
    PartConfig,
    PromptSourceConfig,
    SourceConfig,
    SourceSplit,
    require_read_columns,
)
from hydralign.data.candidates import Candidate, LeftOut, Outcome, Parser, Record, split_key, within_bounds
from hydralign.data.chosen_rows import left_out_by, require_columns_of_where
from hydralign.data.comparisons import comparison_parser
from hydralign.data.demonstrations import demonstration_parser, labelled_parser
from hydralign.data.openings import cut_to_openings
from hydralign.data.prompt_limits import prompt_limit
from hydralign.data.prompts import cut_to_prompts, prompt_parser, tokenised, within_limit
from hydralign.data.reading import IN_MEMORY, read_table
from hydralign.data.report import DataReport, DataSet
from hydralign.data.rows import EmptyTextError, Row, Table
from hydralign.data.special_tokens import count_special_tokens
from hydralign.data.splits import in_part, split_rows
from hydralign.data.templates import prompt_renderer
from hydralign.errors import ConfigError, DataError
from hydralign.types import Demonstration, LabelledText, Preference, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Settings = TypeVar("Settings", bound=SourceConfig)
InMemory = Iterable[Mapping[str, Any]]
Source = (
    SourceConfig | str | os.PathLike[str] | Mapping[str, Any] | Iterable[str | os.PathLike[str] | Mapping[str, Any]]
)
"""A config, the path of a file, the settings of a config, a list of paths, or rows."""

Finish = Callable[[Sequence[Candidate[Record]]], Sequence[Outcome[Record]]]
"""What becomes of candidates in the end, in order."""

_BLOCK = 2048


@dataclass(frozen=True)
class _Gathered(Generic[Record]):
    """One source's table, the candidates that are used, and counts of everything else."""

    table: Table
    candidates: tuple[Candidate[Record], ...]
    dropped: Counter[str]


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

    is_cut, limit = config.cut is not None, prompt_limit(config, tokenizer)
    by_text = is_cut and isinstance(config.held_out, HashSplit) and config.held_out.of == "text"

    def finish(candidates: Sequence[Candidate[Prompt]]) -> Sequence[Outcome[Prompt]]:
        prompts = [one.record for one in candidates]
        made: Sequence[Prompt | LeftOut] = (
            tokenised(prompts, tokenizer)
            if config.cut is None
            else cut_to_prompts(prompts, tokenizer, config.cut, seed=seed)
        )
        keyed = [replace(one, key=split_key(one)) for one in candidates] if by_text else candidates
        return within_limit(keyed, made, limit, tokenizer)

    loaded = _load(
        "prompts",
        partial(prompt_parser, from_text=is_cut, template=config.template),
        config,
        tokenizer,
        rows,
        held_out_limit,
        finish,
        seen=attrgetter("record.token_ids"),
        common_stay=is_cut and not by_text,
    )
    withheld = tuple(sorted(RESERVED_COLUMNS.intersection(loaded.report.columns)))
    notes = limit.consequence if limit else ""
    return replace(loaded, report=replace(loaded.report, withheld=withheld, how_cut=notes))


def load_demonstrations(
    config: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 0,
    rows: InMemory | None = None,
    held_out_limit: int | None = None,
) -> DataSet[Demonstration]:
    """Texts to imitate, not tokenised. The tokenizer is needed for chats, filters on tokens and cuts only.

    `seed`, `rows` and `held_out_limit` are those of `load_prompts`: with equal seeds, `config.cut` parts a text behind
    the prompt that `load_prompts` makes of it. Raises as it does. A bound on prompts is kept where they are encoded.
    """
    config, rows = source_config(DemonstrationSourceConfig, config, rows)
    cut = config.cut
    if cut is not None and tokenizer is None:
        raise ConfigError("cut counts tokens, and no tokenizer is given: nobody can count. Give the policy's.")

    def finish(candidates: Sequence[Candidate[Demonstration]]) -> Sequence[Outcome[Demonstration]]:
        if cut is None or tokenizer is None:
            return candidates
        return cut_to_openings(candidates, tokenizer, cut, seed=seed)

    parser = partial(demonstration_parser, from_text=cut is not None, template=config.template)
    return _load("demonstrations", parser, config, tokenizer, rows, held_out_limit, finish)


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
    return _load("comparisons", comparison_parser, config, tokenizer, rows, held_out_limit)


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
    return _load("labelled", lambda table, _: labelled_parser(table), config, tokenizer, rows, held_out_limit)


def training_texts(config: DataConfig) -> list[str]:
    """Texts to make a tokenizer from: the demonstrations', or else those of the prompts' source, as they stand.

    Raises DataError without either.
    """
    if config.demonstrations is not None:
        return [row.prompt + row.completion for row in load_uncut(config.demonstrations).train]
    if config.prompts is not None:
        table = _read(config.prompts)
        if config.prompts.template is not None:
            render = prompt_renderer(table, config.prompts.template)
            return [render(row).text for row in table.rows]
        name = table.first("text", "prompt", "query")
        if name is not None:
            return [row.text(name) for row in table.rows]
    raise DataError(
        "model.new needs texts to train its tokenizer on, and the recipe's data name none: nothing could be encoded. "
        "Add data.demonstrations or data.prompts."
    )


def load_uncut(config: SourceConfig) -> DataSet[Demonstration]:
    """Demonstrations before there is a tokenizer to cut them with: a text that is to be cut stands whole, on the same
    side of the split.
    """
    return load_demonstrations(config.model_copy(update={"cut": None}))


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
    listed = source if isinstance(source, list | tuple) else (source,)
    if listed and all(isinstance(one, str | os.PathLike) for one in listed):
        return kind(source=cast(Any, source)), rows
    if isinstance(source, Iterable):
        return kind(source=IN_MEMORY), cast(InMemory, source)
    raise ConfigError(
        f"source={source!r:.80} of type {type(source).__name__}: there is nothing to read. Give the path of a file, "
        "rows, or a SourceConfig."
    )


def _load(
    kind: str,
    parser: Callable[[Table, PreTrainedTokenizerBase | None], Parser[Record]],
    source: Source,
    tokenizer: PreTrainedTokenizerBase | None,
    rows: InMemory | None,
    held_out_limit: int | None,
    finish: Finish[Record] = list,
    *,
    seen: Callable[[Candidate[Record]], Hashable] | None = None,
    common_stay: bool = False,
) -> DataSet[Record]:
    """Both sides of one kind of data.

    `parser` says how a table's rows become candidates, `finish` what becomes of a block of theirs in the end. `seen`
    and `common_stay` are those of `split_rows`. Raises ConfigError for slips in the names of columns.
    """
    config, rows = source_config(SourceConfig, source, rows)
    require_read_columns(kind, config.columns, others=True)
    if tokenizer is None and (config.filter.min_tokens is not None or config.filter.max_tokens is not None):
        raise ConfigError(
            "filter counts tokens, and no tokenizer is given: nobody can count. Give one, or use characters."
        )
    gathered = [_gather(config, rows, parser, finish, tokenizer)]
    if isinstance(config.held_out, SourceSplit):
        source, split = config.held_out.source, config.held_out.split
        changes = {"source": source, "split": split, "part": PartConfig(), "limit": held_out_limit}
        gathered.append(_gather(config.model_copy(update=changes), None, parser, finish, tokenizer))
    keyed, *other = ([(split_key(one), one) for one in part.candidates] for part in gathered)
    sides = split_rows(keyed, config.held_out, *other, seen=seen, common_stay=common_stay)
    sources = [part.table.source for part in gathered]
    dropped = sum((part.dropped for part in gathered), Counter())
    if sides.leaking:
        dropped["whose prompt is held out"] = sides.leaking
    report = DataReport(
        source=f"{sources[0]} (held out: {sources[1]})" if other else sources[0],
        rows_read=sum(len(part.table.rows) for part in gathered),
        train=len(sides.train),
        held_out=len(sides.held_out),
        dropped=dict(dropped),
        columns=tuple(dict.fromkeys(name for part in gathered for name in part.table.columns)),
        shortened=sum(one.shortened for part in gathered for one in part.candidates),
        cut_prompts=sum(one.cut for one in (*sides.train, *sides.held_out)),
        special_tokens=count_special_tokens((one.texts for one in (*sides.train, *sides.held_out)), tokenizer),
    )
    if not sides.train:
        raise DataError(
            f"{report.describe()} Nothing is left to train on: there is nothing to learn. Loosen the filter, hold out "
            "less, or name a source with more rows."
        )
    return DataSet(tuple(one.record for one in sides.train), tuple(one.record for one in sides.held_out), report)


def _read(config: SourceConfig, rows: InMemory | None = None) -> Table:
    return read_table(config.source, split=config.split, columns=config.columns, replace=config.replace, rows=rows)


def _gather(
    config: SourceConfig,
    rows: InMemory | None,
    parser: Callable[[Table, PreTrainedTokenizerBase | None], Parser[Record]],
    finish: Finish[Record],
    tokenizer: PreTrainedTokenizerBase | None,
) -> _Gathered[Record]:
    table = _read(config, rows)
    require_columns_of_where(table, config.where)
    parse = parser(table, tokenizer)
    order = range(len(table.rows)) if config.limit is None else table.order
    blocks = ([table.rows[place] for place in order[start : start + _BLOCK]] for start in range(0, len(order), _BLOCK))
    outcomes = chain.from_iterable(_outcomes(block, parse, finish, config, tokenizer) for block in blocks)
    used: dict[int, Candidate[Record]] = {}
    dropped: Counter[str] = Counter()
    for done, (place, outcome) in enumerate(zip(order, outcomes, strict=False)):
        if len(used) == config.limit:
            dropped[f"beyond the limit of {config.limit:,} usable rows"] = len(order) - done
            break
        if isinstance(outcome, LeftOut):
            dropped[outcome.reason] += 1
        else:
            used[place] = outcome
    return _Gathered(table, tuple(used[place] for place in sorted(used)), dropped)


def _outcomes(
    rows: Sequence[Row],
    parse: Parser[Record],
    finish: Finish[Record],
    config: SourceConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[Outcome[Record]]:
    """What became of each row, in order."""
    chosen = [left_out_by(row, config.where) or _parsed(row, parse, config.filter) for row in rows]
    parsed = within_bounds(chosen, config.filter, tokenizer)
    finished = iter(finish([one for one in parsed if isinstance(one, Candidate)]))
    for one in parsed:
        done = one if isinstance(one, LeftOut) else next(finished)
        if isinstance(one, LeftOut) or isinstance(done, LeftOut) or in_part(split_key(one), config.part):
            yield done
        else:
            yield LeftOut(f"outside the part {config.part.low:g}-{config.part.high:g} %")


def _parsed(row: Row, parse: Parser[Record], bounds: FilterConfig) -> Outcome[Record]:
    try:
        return parse(row)
    except EmptyTextError as error:
        if bounds.empty == "error":
            raise
        return LeftOut(f"with an empty {error.field}")
