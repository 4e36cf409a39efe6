"""Text to token ids, by one rule for prompts, filters and cuts.

A tokenizer's own template is not used: it may append an end-of-sequence token, after which a model would have
nothing to say. Only a beginning-of-sequence token that the tokenizer normally puts first is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, with the tokenizer's own first token (if it has one) and without a last one.

    A text that already spells its first token, as rendered chats do, gets no second one.
    """
    first = first_token(tokenizer)
    return [ids if ids[: len(first)] == first else first + ids for ids in encode_plain(tokenizer, texts)]


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text and of nothing else."""
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
    return [tuple(ids) for ids in rows]


def first_token(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The beginning-of-sequence id that this tokenizer puts before every text, or nothing."""
    usual = tokenizer("a").input_ids[:1]
    return tuple(usual) if usual and usual[0] == tokenizer.bos_token_id else ()
