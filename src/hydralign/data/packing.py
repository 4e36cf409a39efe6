"""Demonstrations to token sequences: what is read, what is learned, and how several share a row.

A sequence is prompt, completion and one end-of-sequence token, unless the completion spells a stop token itself, as
rendered chats do. Prompt and completion are tokenised apart: no token spans both, so a completion is
learned as it will be sampled. A decoder reads both in one row, so its bound is on both together; an encoder–decoder
reads them apart, and each has a bound of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hydralign.data.prompt_limits import PromptLimit
from hydralign.data.tokens import encode_completions, encode_prompts
from hydralign.encoder_input import feeds_encoder
from hydralign.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["cut", "split", "leave_out"]

_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of one demonstration (or a piece of one); those from `learned_from` on are learned."""

    ids: NDArray[np.int32]
    learned_from: int

    @property
    def learned(self) -> int:
        """Tokens that the loss covers. The first token of a sequence is never one: nothing predicts it."""
        return len(self.ids) - max(1, self.learned_from)


def sequences(
    records: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    *,
    max_tokens: int,
    too_long: TooLong = "cut",
    prompts: PromptLimit | None = None,
) -> tuple[tuple[TokenSequence, ...], dict[str, int]]:
    """The records as sequences of at most `max_tokens`, in order, and counts of what was shortened or left out.

    Of an encoder–decoder, completions have at most `max_tokens`. Prompts are first brought within the limit `prompts`.
    `cut` keeps the first tokens, `split` makes several sequences of the completion, each with no memory of the one
    before (of a record with a prompt, the rest is dropped and counted), `leave_out` takes the record out.
    """
    used: list[TokenSequence] = []
    counts: Counter[str] = Counter()
    apart, longer = feeds_encoder(tokenizer), f"longer than {max_tokens:,} tokens"
    if apart:
        longer = f"with a completion {longer}"
    for start in range(0, len(records), _BLOCK):
        for encoded in _encoded(records[start : start + _BLOCK], tokenizer, stop_ids):
            kept = encoded if prompts is None else _within(encoded, prompts, counts)
            if kept is None:
                continue
            ids, prompt = kept
            most = max_tokens + (prompt if apart else 0)
            if len(ids) <= most:
                pieces = [TokenSequence(ids, prompt)]
            elif too_long == "leave_out":
                counts[f"{longer}, left out"] += 1
                continue
            elif too_long == "split" and prompt == 0:
                counts[f"{longer}, split"] += 1
                pieces = [TokenSequence(piece, 0) for piece in _pieces(ids, max_tokens)]
            else:
                counts[f"{longer}, cut at the end"] += 1
                pieces = [TokenSequence(ids[:most], prompt)]
            learnable = [piece for piece in pieces if piece.learned > 0]
            used += learnable
            if not learnable:
                counts["without a token to learn, left out"] += 1
            elif len(learnable) < len(pieces):
                counts["with pieces of a single token, which were left out"] += 1
    return tuple(used), dict(counts)


def _within(
    encoded: tuple[NDArray[np.int32], int], limit: PromptLimit, counts: Counter[str]
) -> tuple[NDArray[np.int32], int] | None:
    """A record's ids and how many of them are prompt, the prompt within the limit; None where it is left out."""
    ids, prompt = encoded
    if prompt <= limit.tokens:
        return encoded
    counts[limit.consequence] += 1
    kept = limit.apply(tuple(ids[:prompt].tolist()))
    return None if kept is None else (np.concatenate([np.array(kept, dtype=np.int32), ids[prompt:]]), len(kept))


def _pieces(ids: NDArray[np.int32], max_tokens: int) -> list[NDArray[np.int32]]:
    """The ids in pieces of `max_tokens` and a shorter last one, never of one token while the piece before it has three:
    a single token, which may be the end, could not be learned.
    """
    cuts = list(range(max_tokens, len(ids), max_tokens))
    if max_tokens > 2 and cuts and len(ids) - cuts[-1] == 1:
        cuts[-1] -= 1
    return np.split(ids, cuts)


def _encoded(
    records: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Ids of each record, and how many of them are prompt."""
    # A text without a prompt begins as a decoder's tokenizer begins every text; an encoder reads a prompt of no words.
    both = [bool(record.prompt) or feeds_encoder(tokenizer) for record in records]
    continued = [record for record, has_prompt in zip(records, both, strict=True) if has_prompt]
    alone = [record.completion for record, has_prompt in zip(records, both, strict=True) if not has_prompt]
    prompts, texts = (iter(encode_prompts(tokenizer, some)) for some in ([one.prompt for one in continued], alone))
    completions = iter(
        encode_completions(tokenizer, [row.prompt for row in continued], [row.completion for row in continued])
    )
    for has_prompt in both:
        prompt, completion = (next(prompts), next(completions)) if has_prompt else ((), next(texts))
        end = () if _ends(completion, stop_ids, tokenizer) else (tokenizer.eos_token_id,)
        yield np.array([*prompt, *completion, *end], dtype=np.int32), len(prompt)


def _ends(ids: Sequence[int], stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the last token that is not white space ends an answer: chat templates put a line break behind it."""
    for token in reversed(ids[-3:]):
        if token in stop_ids:
            return True
        if tokenizer.decode([token]).strip():
            return False
    return False


def packed(items: Sequence[TokenSequence], max_tokens: int) -> tuple[tuple[TokenSequence, ...], ...]:
    """The sequences gathered into rows of at most `max_tokens`, each once: longest first, where it fits best.

    Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); ties keep their order.
    """
    open_rows: dict[int, list[list[TokenSequence]]] = defaultdict(list)
    rooms: list[int] = []
    rows: list[list[TokenSequence]] = []
    for item in sorted(items, key=lambda item: -len(item.ids)):
        place = bisect_left(rooms, len(item.ids))
        if place == len(rooms):
            row: list[TokenSequence] = []
            rows.append(row)
            room = max_tokens
        else:
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms.pop(place)
        row.append(item)
        rest = room - len(item.ids)
        if not open_rows[rest]:
            insort(rooms, rest)
        open_rows[rest].append(row)
    return tuple(tuple(row) for row in rows)
