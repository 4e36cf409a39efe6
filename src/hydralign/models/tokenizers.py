"""Load a tokenizer and use it once, since some damage shows only when a text is encoded."""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoTokenizer

from hydralign.errors import TokenizerError

PROBE = "this is a short text"


def read_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id, which has encoded and decoded a short text.

    To be called within `named_load_errors`: raises whatever transformers does, and TokenizerError for a longest text
    that is no number of tokens.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 1 <= limit < math.inf:
        raise TokenizerError(
            f"The tokenizer of {path!r} has model_max_length={limit!r} in its tokenizer_config.json: the longest text "
            "in tokens must be a number of at least 1. Correct it, or leave it out for no limit."
        )
    tokenizer.decode(tokenizer(PROBE, verbose=False).input_ids)
    return tokenizer
