"""Whether prompts are read by an encoder: then they end as the encoder was trained to see texts end, and answers are
texts of their own, which continue nothing.

The model decides it, and data are encoded by the tokenizer alone, so that the tokenizer says it.
"""

from __future__ import annotations

from typing import Any


def mark_for_encoder(tokenizer: Any) -> None:
    """Say, on the tokenizer itself, that its prompts are read by an encoder. The mark is not saved with it."""
    tokenizer.feeds_encoder = True


def feeds_encoder(tokenizer: Any) -> bool:
    """Whether prompts are read by an encoder, and answers written by a decoder that begins with a token of its own."""
    return bool(getattr(tokenizer, "feeds_encoder", False))
