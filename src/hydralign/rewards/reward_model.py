"""Our reward models: one way to encode an answer, and one way to read its score.

A reward model is an ordinary `AutoModelForSequenceClassification` folder with `num_labels = 1`. Training,
evaluation and PPO all use `encode` and `outputs` below, so none of them can disagree with another, and a process
that knows only transformers gets the same numbers: its forward pass reads the rightmost token that is not padding,
which is the last real token as long as the pad token is no token of the text. Hence pad must differ from EOS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hydralign.data.tokens import encode_text
from hydralign.errors import ModelError, RewardError
from hydralign.micro_batches import MicroBatcher
from hydralign.models.backbones.rope import explain_rope_limit, rope_limit
from hydralign.models.classifiers.loading import load_classifier, longest_text, require_pad_row
from hydralign.models.folders.weights import embedding_rows, require_ids_can_be_read
from hydralign.models.heads.score import scores
from hydralign.progress import say
from hydralign.rewards.batches import require_equal_lengths, score_batched


@dataclass(frozen=True)
class Encoded:
    """Token ids as a reward model reads them, and how many tokens were `cut` off at the beginning."""

    ids: tuple[int, ...]
    cut: int = 0


def encode(tokenizer: Any, prompt: str, completion: str, finished: bool, max_tokens: int | None = None) -> Encoded:
    """Prompt and completion tokenised as one text; EOS at the end if, and only if, the answer finished.

    A chat that spells its beginning-of-sequence token gets no second one. A tokenizer that adds EOS by itself is
    overruled for unfinished answers; one without EOS adds none. Above `max_tokens` the beginning is cut, since the
    score is read at the end. Raises RewardError when no token is left.
    """
    ids = encode_text(tokenizer, prompt + completion)
    eos_id = tokenizer.eos_token_id
    if eos_id is not None:
        ids = ids[:-1] if ids and ids[-1] == eos_id else ids
        ids = [*ids, eos_id] if finished else ids
    if not ids:
        raise RewardError(
            "prompt and completion are both empty, and the answer is unfinished: there is no token to read a score "
            "at. Leave empty rows out of the data."
        )
    cut = 0 if max_tokens is None else max(0, len(ids) - max_tokens)
    return Encoded(tuple(ids[cut:]), cut)


def count_cut(encoded: Sequence[Encoded], max_tokens: int, reader: str, before: int) -> int:
    """How many of these texts were cut; the first time (`before` is 0) a line says what that means."""
    cut = sum(row.cut > 0 for row in encoded)
    if cut and not before:
        say(
            f"Warning: {cut} of {len(encoded)} texts are longer than the {max_tokens} tokens that the {reader} reads: "
            "their beginnings are cut off before they are scored. Use shorter prompts (filter.max_tokens) or answers, "
            "or a model with a longer context. Said once; the metric reward/<name>/cut is the share of such texts."
        )
    return cut


def chat_end(tokenizer: Any) -> re.Pattern[str]:
    """Finds the special tokens, and the white space behind each, that a chat template ends an answer with.

    Sampled answers reach `encode` as text without special tokens; whether they ended is told apart, by `finished`.
    """
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile(rf"(?:(?:{'|'.join(special)})\s*)+\Z" if special else r"(?!)")


def require_reward_model(model: nn.Module, tokenizer: Any) -> int:
    """The pad id of a usable reward model. Raises ModelError for other heads and for a pad that hides EOS."""
    config: Any = model.config
    if config.num_labels != 1:
        labels = ", ".join(map(repr, config.id2label.values()))
        raise ModelError(
            f"the model has {config.num_labels} outputs ({labels}): a reward model has one, and which of these is the "
            "reward would be a guess. Use a reward of type classifier and name the label."
        )
    pad_id = config.get_text_config().pad_token_id
    eos_id = tokenizer.eos_token_id
    if pad_id is None:
        raise ModelError(
            "the reward model's config has no pad_token_id: transformers could not score two texts at once, nor find "
            "the last token of either. Add a padding token of its own and set pad_token_id."
        )
    if pad_id == eos_id:
        raise ModelError(
            f"pad_token_id and the end-of-sequence token are both {pad_id}: transformers reads the score at the "
            "rightmost token that is not padding, so it would skip the end of every finished answer. "
            "Give the reward model a padding token of its own."
        )
    return require_pad_row(pad_id, embedding_rows(config))


class RewardModel:
    """A reward model folder as a reward. `truncated` counts the texts that were too long so far."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, batch_size: int = 32, max_tokens: int | None = None
    ) -> None:
        """Takes a model in eval mode; `max_tokens` None is the longest text that it can read. Raises ModelError."""
        self._pad_id = require_reward_model(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = MicroBatcher(batch_size, name="batch_size")
        limit = rope_limit(model)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise ModelError(
                f"max_tokens={max_tokens}, but {type(model).__name__} reads at most {limit} tokens"
                f"{explain_rope_limit(model)}. Use at most {limit}."
            )
        self.max_tokens = longest_text(model, tokenizer) if max_tokens is None else max_tokens
        self.truncated = 0

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], *, batch_size: int = 32, device: torch.device | str = "cpu"
    ) -> RewardModel:
        """The reward model of a folder or hub id. Raises ModelError when it is incomplete or of another kind."""
        model, tokenizer, _ = load_classifier(path, device)
        return cls(model, tokenizer, batch_size=batch_size)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per row. `finished` None: every answer ended by itself, so EOS follows it."""
        finished = [True] * len(completions) if finished is None else finished
        require_equal_lengths(prompts=prompts, completions=completions, finished=finished)
        answers = zip(prompts, completions, finished, strict=True)
        encoded = [encode(self.tokenizer, *answer, self.max_tokens) for answer in answers]
        ids = (row.ids for row in encoded)
        require_ids_can_be_read(ids, self.tokenizer, embedding_rows(self.model.config), "A text to score")
        self.truncated += count_cut(encoded, self.max_tokens, "reward model", self.truncated)
        return score_batched(
            [row.ids for row in encoded],
            lambda rows: scores(self.model, rows, self._pad_id).float(),
            batch_size=self.batch_size,
        )
