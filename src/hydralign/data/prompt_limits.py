"""Prompts that are longer than their bound: cut on one side, left out, or an error.

A prompt's bound is `max_prompt_tokens` of its source, or what an encoder reads. The special tokens that stand around
every prompt count, and stay when it is cut; so do the words with which a template begins and ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hydralign.config.data import WithPromptsConfig
from hydralign.config.templates import split_template
from hydralign.data.tokens import encode_plain, prompt_frame
from hydralign.encoder_input import encoder_limit
from hydralign.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PromptLimit:
    """Most tokens of a prompt, what happens to longer ones, the special tokens around each, and the ids of the words
    with which a template begins and ends (each before and after).
    """

    tokens: int
    too_long: Literal["error", "cut_start", "cut_end", "leave_out"]
    frame: tuple[Ids, Ids]
    words: tuple[Ids, Ids] = ((), ())

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
        start, end = self._kept(self.body(ids))
        room, inner = self.tokens - start - end, ids[start : len(ids) - end]
        if room < 1:
            raise DataError(
                f"the words of the template have {start + end} tokens with the special ones, and at most "
                f"{self.tokens:,} are read: nothing of the row would be left. Shorten the template, or raise "
                "max_prompt_tokens."
            )
        return (*ids[:start], *(inner[:room] if self.too_long == "cut_end" else inner[-room:]), *ids[len(ids) - end :])

    def _kept(self, body: Ids) -> tuple[int, int]:
        """How many ids stay at both ends: special tokens, and the template's words as far as they are tokens there too,
        as a word next to what fills the template may run into it.
        """
        (first, last), (opening, closing) = self.frame, self.words
        return len(first) + _shared(body, opening), len(last) + _shared(body[::-1], closing[::-1])

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
    if tokens is None:
        return None
    pieces = split_template(config.template) if config.template else [("", None)]
    opening, closing = encode_plain(tokenizer, [pieces[0][0], pieces[-1][0]])
    return PromptLimit(tokens, config.too_long_prompt, prompt_frame(tokenizer), (opening, closing))


def _shared(ids: Ids, words: Ids) -> int:
    """With how many of the same ids both begin."""
    pairs = enumerate(zip(ids, words, strict=False))
    return next((place for place, (one, word) in pairs if one != word), min(len(ids), len(words)))
