"""Whether prompts are read by an encoder: then they end as the encoder was trained to see texts end, and answers are
texts of their own, which continue nothing.

The model decides it, and data are encoded by the tokenizer alone, so that the tokenizer says it.
"""

from __future__ import annotations

from typing import Any

_NO_LIMIT = 1 << 30
"""What stands for no limit on tokens is this or more."""


def mark_for_encoder(tokenizer: Any, positions: int | None = None) -> None:
    """Say, on the tokenizer itself, that its prompts are read by an encoder, and of how many tokens at most, if known.

    The mark is not saved with it.
    """
    tokenizer.feeds_encoder = True
    tokenizer.encoder_positions = positions


def encoder_limit(tokenizer: Any) -> int | None:
    """Most tokens of a prompt that an encoder reads: it has positions for them, and its tokenizer's model_max_length
    allows them, which alone says it where positions are relative, as in T5. None where neither is a limit, and for a
    decoder, which has no limit on prompts alone.
    """
    if not feeds_encoder(tokenizer):
        return None
    limits = (getattr(tokenizer, name, None) for name in ("encoder_positions", "model_max_length"))
    return min((int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT), default=None)


def feeds_encoder(tokenizer: Any) -> bool:
    """Whether prompts are read by an encoder, and answers written by a decoder that begins with a token of its own."""
    return bool(getattr(tokenizer, "feeds_encoder", False))
