"""Token ids back to text, read where they stand: after what comes before them.

Decoded alone, a piece of a sequence may lose or gain characters: a SentencePiece decoder takes the first space away
(Llama 2, Mistral, Phi-3), a WordPiece one writes "##ing", and a character can be spread over several tokens. So a
piece is the text of the whole sequence minus the text of what precedes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from hydralign.encoder_input import feeds_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]

CONTEXT_TOKENS = 64
"""Tokens before a piece that are decoded with it: no decoder looks further back than a word."""
UNREADABLE = "\ufffd"
"""What a decoder writes for bytes that make no whole character."""


def decode_completion(tokenizer: PreTrainedTokenizerBase, prompt_ids: Ids, completion_ids: Ids) -> str:
    """The text that `completion_ids` add after `prompt_ids`, without special tokens. See `decode_completions`."""
    return decode_completions(tokenizer, [prompt_ids], [completion_ids])[0]


def decode_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    skip_special_tokens: bool = True,
) -> list[str]:
    """The text of each completion as it continues its prompt: text of both minus text of the prompt.

    A character that begins in the prompt's last bytes belongs to the completion, as does white space that decoding
    both rewrites. Where the two texts agree on less than that, the completion is decoded alone. An answer to a prompt
    that an encoder reads has none of its tokens before it: it is read after an ordinary word, so that prompt and answer
    can be joined to one text.
    """
    settings = {"skip_special_tokens": skip_special_tokens}
    if feeds_encoder(tokenizer):
        prompts = [_anchor(tokenizer)] * len(completions)
    context = [tuple(prompt[-CONTEXT_TOKENS:]) for prompt in prompts]
    known: dict[tuple[int, ...], str] = dict.fromkeys(context, "")
    known.update(zip(known, tokenizer.batch_decode([list(ids) for ids in known], **settings), strict=True))
    for place, prompt in enumerate(prompts):
        # Special tokens alone give no text: the first token that does decides whether a space is taken away.
        if len(prompt) > CONTEXT_TOKENS and not known[context[place]].strip():
            context[place] = tuple(prompt)
            known[context[place]] = tokenizer.decode(list(prompt), **settings)
    both = [[*before, *ids] for before, ids in zip(context, completions, strict=True)]
    texts = []
    for before, ids, whole in zip(context, completions, tokenizer.batch_decode(both, **settings), strict=True):
        added = _added(known[before], whole)
        texts.append(tokenizer.decode(list(ids), **settings) if added is None else added)
    return texts


def decode_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Ids], completions: Sequence[Ids]
) -> list[list[str]]:
    """The text of every token of each completion, special tokens spelled out, one string per id.

    The strings of a row together are the completion as it continues its prompt, with special tokens. A character that
    is spread over several tokens stands with the last of them; the others are empty. A tokenizer without a decoder
    knows no text between its tokens, so there each token is decoded alone.
    """
    if getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", tokenizer) is None:
        alone = _pieces_by_id(tokenizer, completions, anchor=())
        return [[alone[token] for token in ids] for ids in completions]
    anchor = _anchor(tokenizer)
    pieces = _pieces_by_id(tokenizer, completions, anchor=anchor)
    broken = {token for token, text in pieces.items() if UNREADABLE in text}
    runs: dict[tuple[int, ...], list[str]] = {}
    rows = []
    for ids in completions:
        row: list[str] = []
        for partial, run in groupby(ids, key=broken.__contains__):
            few = tuple(run)
            if partial and few not in runs:
                whole = decode_completions(tokenizer, [anchor], [few], skip_special_tokens=False)[0]
                runs[few] = _pieces_in_context(tokenizer, anchor, few, whole)
            row += runs[few] if partial else [pieces[token] for token in few]
        rows.append(row)
    wholes = decode_completions(tokenizer, prompts, completions, skip_special_tokens=False)
    return [
        row if "".join(row) == whole else _pieces_in_context(tokenizer, prompt, ids, whole)
        for row, prompt, ids, whole in zip(rows, prompts, completions, wholes, strict=True)
    ]


def _added(before: str, whole: str) -> str | None:
    """What `whole` has beyond `before`; None when they differ in more than white space and unfinished characters."""
    unfinished = before.rstrip(UNREADABLE)
    for settled in (before, unfinished, unfinished.rstrip()):
        if whole.startswith(settled):
            return whole[len(settled) :]
    return None


def _pieces_by_id(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Ids], *, anchor: Ids) -> dict[int, str]:
    """The text of each id that occurs, where it follows the tokens of `anchor`."""
    ids = sorted({token for row in completions for token in row})
    texts = decode_completions(tokenizer, [anchor] * len(ids), [[token] for token in ids], skip_special_tokens=False)
    return dict(zip(ids, texts, strict=True))


def _anchor(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Ids of an ordinary word, for another token to follow."""
    return tuple(tokenizer("a", add_special_tokens=False, return_attention_mask=False).input_ids)


def _pieces_in_context(tokenizer: PreTrainedTokenizerBase, prompt: Ids, ids: Ids, whole: str) -> list[str]:
    """The text of each token, by decoding ever longer beginnings; together they are `whole`."""
    beginnings = [ids[: count + 1] for count in range(len(ids))]
    texts = decode_completions(tokenizer, [prompt] * len(ids), beginnings, skip_special_tokens=False)
    ends = [_agreed(text, whole) for text in texts[:-1]] + [len(whole)]
    pieces, shown = [], 0
    for end in ends:
        pieces.append(whole[shown : max(shown, end)])
        shown = max(shown, end)
    return pieces


def _agreed(text: str, whole: str) -> int:
    """How many leading characters of `text` stand in `whole` too."""
    if whole.startswith(text):
        return len(text)
    return next(place for place, letter in enumerate(text) if whole[place : place + 1] != letter)
