"""Prompts that are longer than their bound: cut on one side, left out, or an error.

A prompt's bound is `max_prompt_tokens` of its source, or what an encoder reads. The special tokens that stand around
every prompt count, and stay when it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hydralign.config.data import WithPromptsConfig
from hydralign.data.tokens import prompt_frame
from hydralign.encoder_input import encoder_limit
from hydralign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PromptLimit:
    """Most tokens of a prompt, what happens to longer ones, and the special tokens around each (before and after)."""

    tokens: int
    too_long: Literal["error", "cut_start", "cut_end", "leave_out"]
    frame: tuple[Ids, Ids]

    def apply(self, ids: Ids) -> Ids | None:
        """The prompt's ids, cut where they are too many; None where it is to be left out. Raises DataError."""
        if len(ids) <= self.tokens:
            return ids
        if self.too_long == "leave_out":
            return None
        if self.too_long == "error":
            raise DataError(
                f"a prompt has {len(ids):,} tokens, and at most {self.tokens:,} are read: the rest would be lost. Set "
                "too_long_prompt of its source to cut_start or cut_end (what is cut off) or leave_out, or bound texts "
                "with filter."
            )
        first, last = self.frame
        room, body = self.tokens - len(first) - len(last), self.body(ids)
        return (*first, *(body[:room] if self.too_long == "cut_end" else body[-room:]), *last)

    def body(self, ids: Ids) -> Ids:
        """A prompt's ids without the special tokens around it."""
        first, last = self.frame
        return ids[len(first) : len(ids) - len(last)]

    @property
    def consequence(self) -> str:
        """What happened to prompts that were too long, to stand behind their number."""
        done = {"cut_start": "cut at the beginning", "cut_end": "cut at the end", "leave_out": "left out"}
        return f"with a prompt longer than {self.tokens:,} tokens, {done.get(self.too_long, 'refused')}"


def prompt_limit(config: WithPromptsConfig, tokenizer: PreTrainedTokenizerBase) -> PromptLimit | None:
    """The bound on the prompts of this source as this tokenizer's model reads them; None where there is none.

    Raises ConfigError for a bound above what the encoder reads, and where `too_long_prompt` has no bound to go by.
    """
    read = encoder_limit(tokenizer)
    named = config.max_prompt_tokens
    if named is not None and read is not None and named > read:
        raise ConfigError(
            f"max_prompt_tokens={named:,} is above the {read:,} tokens that the encoder reads: it has no positions for "
            f"more, or its tokenizer's model_max_length says so. Use at most {read:,}."
        )
    tokens = named or read
    if tokens is None and config.too_long_prompt != "error":
        raise ConfigError(
            f"too_long_prompt={config.too_long_prompt} without max_prompt_tokens: this model has no bound on prompts "
            "alone, so none could be too long. Set max_prompt_tokens, or leave too_long_prompt out."
        )
    return None if tokens is None else PromptLimit(tokens, config.too_long_prompt, prompt_frame(tokenizer))
