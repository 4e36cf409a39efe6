"""Load a tokenizer and use it once, since some damage shows only when a text is encoded."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoTokenizer

from hydralign.errors import TokenizerError

PROBE = "this is a short text"
NO_LIMIT = 1 << 30
"""Tokens that no text has."""


def read_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id, which has encoded and decoded a short text.

    To be called within `named_load_errors`: raises whatever transformers does, and TokenizerError for a longest text
    that is no number of tokens.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer_limit(tokenizer.model_max_length, f"The tokenizer of {path!r}") == NO_LIMIT:
        tokenizer.model_max_length = max(NO_LIMIT, tokenizer.model_max_length or NO_LIMIT)
    tokenizer.decode(tokenizer(PROBE, verbose=False).input_ids)
    return tokenizer


def tokenizer_limit(model_max_length: Any, tokenizer: str) -> int:
    """Most tokens of a text by a tokenizer's own setting; -1, infinity and none at all are no limit.

    `tokenizer` is what messages call it. Raises TokenizerError for what is no number of tokens.
    """
    if model_max_length is None or model_max_length in (-1, math.inf):
        return NO_LIMIT
    if isinstance(model_max_length, bool) or not isinstance(model_max_length, int | float) or not model_max_length >= 1:
        raise TokenizerError(
            f"{tokenizer} has model_max_length={model_max_length!r:.80} in its tokenizer_config.json, which is no "
            "number of tokens: where texts are to be cut is unknown. Correct it, or take it out for no limit."
        )
    return min(int(model_max_length), NO_LIMIT)
