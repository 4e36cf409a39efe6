"""Rows to prompts, and texts cut to their first tokens.

The length of a cut is a function of (seed, text) alone, so leaving out or reordering other rows changes none. Only
the head of a long text is tokenised, up to a space well behind the last token that can be needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from hydralign.config.data import RESERVED_COLUMNS, CutConfig
from hydralign.data.candidates import Candidate, LeftOut, Outcome, Parser, split_key
from hydralign.data.chat import contents_of, is_chat, messages_of, render_prompt
from hydralign.data.prompt_limits import PromptLimit
from hydralign.data.rows import Row, Table
from hydralign.data.templates import prompt_renderer
from hydralign.data.tokens import encode_plain, encode_prompts, prompt_frame, without_first
from hydralign.errors import DataError
from hydralign.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEAD_CHARACTERS_PER_TOKEN = 24


def prompt_parser(
    table: Table, tokenizer: PreTrainedTokenizerBase | None, *, from_text: bool, template: str | None = None
) -> Parser[Prompt]:
    """How this table's rows become prompts, not yet tokenised. Raises DataError when its columns do not allow it.

    A template names the columns that are read. Without one, a column that the recipe maps, of whatever kind, goes
    before all others.
    """
    if template is not None:
        return _template_parser(table, template)
    usual = ("text",) if from_text else ("prompt", "query")
    name = table.first(*usual, *(other for other in ("prompt", "query", "text") if other in table.mapped))
    if name is None:
        needed = "`text` is" if from_text else "`prompt` or `query` (or `text`, with a `cut`) is"
        raise table.lacks("prompts", needed, usual[0])

    def parse(row: Row) -> Candidate[Prompt]:
        others = row.without(*RESERVED_COLUMNS)
        if from_text or not is_chat(row.value(name)):
            return Candidate(Prompt(row.text(name), (), others))
        messages = messages_of(row, name)
        text = render_prompt(row, name, messages, tokenizer)
        return Candidate(Prompt(text, (), others), written=contents_of(messages))

    return parse


def _template_parser(table: Table, template: str) -> Parser[Prompt]:
    render = prompt_renderer(table, template)

    def parse(row: Row) -> Candidate[Prompt]:
        made = render(row)
        record = Prompt(made.text, (), row.without(*RESERVED_COLUMNS))
        return Candidate(record, written=made.filled, measured=made.measured, key=made.measured)

    return parse


def as_prompts(prompts: Sequence[Prompt | str], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts, and texts as prompts, those without token ids encoded. Raises DataError for anything else."""
    listed = [] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else list(prompts)
    if not listed or not all(isinstance(prompt, str | Prompt) for prompt in listed):
        raise DataError(
            f"prompts={prompts!r:.60} of type {type(prompts).__name__}: a list of texts or of Prompts is needed, or it "
            "is unclear what to answer. Give a list, [text] for one."
        )
    records = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in listed]
    bare = [place for place, prompt in enumerate(records) if prompt.text and not prompt.token_ids]
    for place, prompt in zip(bare, tokenised([records[place] for place in bare], tokenizer), strict=True):
        records[place] = prompt
    return records


def tokenised(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts with their token ids."""
    encoded = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    return [replace(prompt, token_ids=ids) for prompt, ids in zip(prompts, encoded, strict=True)]


def within_limit(
    candidates: Sequence[Candidate[Prompt]],
    prompts: Sequence[Prompt | LeftOut],
    limit: PromptLimit | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Outcome[Prompt]]:
    """The candidates with these records of theirs, those that are too long cut or left out.

    A cut prompt stays on the side of the split where the whole one was. Raises DataError where the limit does.
    """
    outcomes: list[Outcome[Prompt]] = []
    for one, prompt in zip(candidates, prompts, strict=True):
        if isinstance(prompt, LeftOut):
            outcomes.append(prompt)
            continue
        made = replace(one, record=prompt)
        if limit is None or len(prompt.token_ids) <= limit.tokens:
            outcomes.append(made)
            continue
        ids = limit.apply(prompt.token_ids)
        if ids is None:
            outcomes.append(LeftOut(limit.consequence))
            continue
        text = tokenizer.decode(list(limit.body(ids)), clean_up_tokenization_spaces=False)
        outcomes.append(replace(made, record=replace(prompt, text=text, token_ids=ids), key=split_key(made), cut=True))
    return outcomes


def cut_to_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, cut: CutConfig, *, seed: int
) -> list[Prompt | LeftOut]:
    """The first tokens of each text, decoded again; the ids are what counts where a cut splits a character.

    The tokenizer's own first token comes on top of them, once, whether the text spells it or not.
    """
    texts = [prompt.text for prompt in prompts]
    lengths = [cut_length(text, cut, seed=seed) for text in texts]
    first, last = prompt_frame(tokenizer)
    encoded = [without_first(ids, first) for ids in _heads(tokenizer, texts, cut.max_tokens + len(first))]
    heads = [ids[:n] for ids, n in zip(encoded, lengths, strict=True)]
    decoded = tokenizer.batch_decode([list(head) for head in heads], clean_up_tokenization_spaces=False)
    short = too_short_to_cut(cut)
    return [
        replace(prompt, text=text, token_ids=(*first, *head, *last)) if len(head) == n else short
        for prompt, head, text, n in zip(prompts, heads, decoded, lengths, strict=True)
    ]


def too_short_to_cut(cut: CutConfig) -> LeftOut:
    """What becomes of a text with fewer tokens than are to be cut out of it."""
    return LeftOut(f"with fewer tokens than the length drawn ({cut.min_tokens} to {cut.max_tokens})")


def cut_length(text: str, cut: CutConfig, *, seed: int) -> int:
    """The number of tokens to keep of `text`: uniform over the cut's range, keyed by seed and text."""
    digest = blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest()
    return cut.min_tokens + int.from_bytes(digest) % (cut.max_tokens - cut.min_tokens + 1)


def _heads(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], needed: int) -> list[tuple[int, ...]]:
    """Token ids of each text, of which the first `needed` are right; more need not be there."""
    heads = [_head(text, needed * _HEAD_CHARACTERS_PER_TOKEN) for text in texts]
    encoded = encode_plain(tokenizer, heads)
    # The last token of a head may have been another one in the whole text, so one more than needed must be there.
    unsure = [
        place for place, ids in enumerate(encoded) if len(ids) <= needed and len(heads[place]) < len(texts[place])
    ]
    for place, ids in zip(unsure, encode_plain(tokenizer, [texts[place] for place in unsure]), strict=True):
        encoded[place] = ids
    return encoded


def _head(text: str, characters: int) -> str:
    """The beginning of the text up to the last space within `characters`; the whole text where there is none."""
    if len(text) <= characters:
        return text
    end = text.rfind(" ", 0, characters)
    return text[:end] if end > 0 else text
