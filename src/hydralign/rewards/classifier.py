"""A text classifier as a reward, read at one label by *name*.

Labels are never taken by position: which column means "positive" differs between models, and a wrong guess
trains towards the opposite. Three read-outs of the label's logit z:

    logit         z
    log_odds      z - logsumexp(other logits) = log p/(1-p); z itself when labels are independent of each other
    probability   p = sigmoid(log_odds), which is softmax (or, for independent labels, the plain sigmoid)

Labels are independent (sigmoid) or exclude each other (softmax): `activation` says which, else the model's own
`problem_type`. Most published configs lack that; then softmax is taken, as transformers takes it, and said aloud.

Texts are right-padded with an attention mask and scored in fp32, so neither padding nor company changes a score.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hydralign.data import tokens
from hydralign.errors import ModelError, did_you_mean
from hydralign.micro_batches import MicroBatcher
from hydralign.models.classifiers.labels import (
    are_independent,
    find_label,
    label_names,
    labels_of_config,
    require_comparable,
    require_probabilities,
)
from hydralign.models.classifiers.loading import load_classifier, longest_text, require_pad_row
from hydralign.models.folders.weights import embedding_rows, require_ids_can_be_read
from hydralign.models.heads.score import pad_right
from hydralign.progress import say
from hydralign.rewards.batches import require_equal_lengths, score_batched
from hydralign.rewards.reward_model import Encoded, count_cut

Output = Literal["logit", "log_odds", "probability"]
Activation = Literal["softmax", "sigmoid"]
TextPart = Literal["completion", "prompt+completion"]


class ClassifierReward:
    """The score of `label` for each row's text. `truncated` counts the texts that were too long so far.

    `text` is the completion, or prompt and completion joined with nothing between. Of a text that is too long the
    beginning goes, so that the answer's end is read.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        label: str,
        output: Output = "logit",
        text: TextPart = "prompt+completion",
        activation: Activation | None = None,
        batch_size: int = 32,
    ) -> None:
        """Takes a transformers sequence classifier in eval mode. Raises ModelError when it cannot be read so."""
        choices = ((output, get_args(Output)), (text, get_args(TextPart)), (activation, get_args(Activation)))
        for value, allowed in choices:
            if value is not None and value not in allowed:
                raise ModelError(
                    f"{value!r} is no way to read a classifier: its score would be undefined. "
                    f"{did_you_mean(value, allowed)}"
                )
        config: Any = model.config
        labels = label_names(config.id2label, type(model).__name__)
        self.label_column = find_label(label, labels)
        self.label = labels[self.label_column]
        require_probabilities(config.problem_type, activation, output)
        independent = are_independent(activation, config.problem_type)
        require_comparable(labels, output, independent=independent)
        if activation is None and config.problem_type is None and output != "logit":
            _say_that_softmax_is_assumed(labels, output)
        pad_id = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
        if pad_id is None:
            raise ModelError(
                "neither the classifier nor its tokenizer names a padding token: texts of unequal length cannot be "
                "scored together. Set pad_token_id in its config.json."
            )
        config.pad_token_id = require_pad_row(pad_id, embedding_rows(config))
        self.model, self.tokenizer, self.output, self.text = model, tokenizer, output, text
        self.batch_size = MicroBatcher(batch_size, name="batch_size")
        self.truncated = 0
        self._pad_id = int(pad_id)
        self._independent = independent
        self.max_tokens = longest_text(model, tokenizer)
        tokenizer.truncation_side = "left"

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        label: str,
        output: Output = "logit",
        text: TextPart = "prompt+completion",
        activation: Activation | None = None,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ) -> ClassifierReward:
        """The classifier of a folder or hub id. Raises ModelError when weights, tokenizer or label are missing."""
        model, tokenizer, raw = load_classifier(path, device)
        labels_of_config(raw, label, repr(str(path)))
        return cls(
            model, tokenizer, label=label, output=output, text=text, activation=activation, batch_size=batch_size
        )

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One float per row."""
        require_equal_lengths(prompts=prompts, completions=completions)
        if self.text == "completion":
            texts = list(completions)
        else:
            texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        encoded = [encode_for_classifier(self.tokenizer, text, self.max_tokens) for text in texts]
        ids = (one.ids for one in encoded)
        require_ids_can_be_read(ids, self.tokenizer, embedding_rows(self.model.config), "A text to score")
        self.truncated += count_cut(encoded, self.max_tokens, f"classifier for {self.label!r}", self.truncated)
        return score_batched([self._ids(one) for one in encoded], self._forward, batch_size=self.batch_size)

    def _ids(self, encoded: Encoded) -> Sequence[int]:
        if encoded.ids:
            return encoded.ids
        # An empty text has no token to be read at; a model without [CLS] gets its start-of-text token.
        starts = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self._pad_id)
        return [next(start for start in starts if start is not None)]

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        tokens_BT, mask_BT, _ = pad_right(rows, self._pad_id, next(self.model.parameters()).device)
        logits_BC = self.model(input_ids=tokens_BT, attention_mask=mask_BT.long()).logits.float()
        logit_B = logits_BC[:, self.label_column]
        if self.output == "logit":
            return logit_B
        others_BC = torch.cat([logits_BC[:, : self.label_column], logits_BC[:, self.label_column + 1 :]], dim=1)
        log_odds_B = logit_B if self._independent else logit_B - others_BC.logsumexp(dim=1)
        return log_odds_B if self.output == "log_odds" else log_odds_B.sigmoid()


def _say_that_softmax_is_assumed(labels: Sequence[str], output: Output) -> None:
    say(
        f"Warning: the classifier's config.json has no problem_type, so {output} assumes that its labels "
        f"({', '.join(map(repr, labels))}) exclude each other (softmax). If a text can have several of them, as in "
        "toxicity models, set activation: sigmoid; if not, activation: softmax ends this warning."
    )


def encode_for_classifier(tokenizer: Any, text: str, max_tokens: int) -> Encoded:
    """The text as the tokenizer writes it, with its own special tokens; above `max_tokens` it is cut at the
    tokenizer's `truncation_side`. Empty texts may have no ids. A first token that the text spells comes once.
    """
    ids = tokens.encode_text(tokenizer, text)
    if len(ids) <= max_tokens:
        return Encoded(tuple(ids))
    kept = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
    kept = kept[1:] if tokens.starts_twice(tokenizer, kept) else kept
    return Encoded(tuple(kept), len(ids) - len(kept))
