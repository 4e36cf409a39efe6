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
from hydralign.memory import MicroRows
from hydralign.progress import say
from hydralign.rewards.batches import pad_right, require_rows, score_batched
from hydralign.rewards.learned import Encoded, count_cut
from hydralign.rewards.loading import load_classifier, longest_text

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
        batch_rows: int = 32,
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
        labels = {int(column): name for column, name in config.id2label.items()}
        self.label_column = find_label(label, [labels[column] for column in sorted(labels)])
        self.label = labels[self.label_column]
        require_probabilities(config.problem_type, activation, output)
        independent = _are_independent(config, activation, output)
        if len(labels) == 1 and output != "logit" and not independent:
            raise ModelError(
                f"the classifier has the single output {self.label!r}: {output} needs another label to compare with. "
                "Use output: logit, or activation: sigmoid if the output was trained so."
            )
        pad_id = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
        if pad_id is None:
            raise ModelError(
                "neither the classifier nor its tokenizer names a padding token: texts of unequal length cannot be "
                "scored together. Set pad_token_id in its config.json."
            )
        config.pad_token_id = pad_id
        self.model, self.tokenizer, self.output, self.text = model, tokenizer, output, text
        self.batch_rows = MicroRows(batch_rows, name="batch_rows")
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
        batch_rows: int = 32,
        device: torch.device | str = "cpu",
    ) -> ClassifierReward:
        """The classifier of a folder or hub id. Raises ModelError when weights, tokenizer or label are missing."""
        model, tokenizer, raw = load_classifier(path, device)
        if not raw.get("id2label"):
            raise ModelError(
                f"the config.json of {str(path)!r} names no labels: which output means {label!r} would be a guess. "
                "Add id2label to it."
            )
        return cls(
            model, tokenizer, label=label, output=output, text=text, activation=activation, batch_rows=batch_rows
        )

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One float per row."""
        require_rows(prompts=prompts, completions=completions)
        if self.text == "completion":
            texts = list(completions)
        else:
            texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        encoded = [encode_text(self.tokenizer, text, self.max_tokens) for text in texts]
        self.truncated += count_cut(encoded, self.max_tokens, f"classifier for {self.label!r}", self.truncated)
        return score_batched([self._ids(one) for one in encoded], self._forward, batch_rows=self.batch_rows)

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


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""What a classifier's config.json may say that its outputs are."""


def require_probabilities(problem_type: str | None, activation: Activation | None, output: Output) -> None:
    """Raise ModelError when `output` is made of probabilities, and the model's `problem_type` says that there are none,
    or is a word that nobody knows. An `activation` that is given says what they are.
    """
    if output == "logit" or activation is not None:
        return
    if problem_type == "regression":
        raise ModelError(
            f"the classifier's problem_type is 'regression': its outputs are no probabilities, so {output} would mean "
            "nothing. Use output: logit; or say by activation: sigmoid or softmax that it was trained on labels."
        )
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ModelError(
            f"the classifier's problem_type {problem_type!r} in its config.json is not known: whether its labels "
            f"exclude each other, and so its {output}, would be a guess. {did_you_mean(problem_type, PROBLEM_TYPES)} "
            "Correct it, or set activation: sigmoid or softmax, or output: logit."
        )


def _are_independent(config: Any, activation: Activation | None, output: Output) -> bool:
    """Whether each label has a probability of its own: as `activation` says, else as the model does, else not.

    Where neither says it, and `output` depends on it, the assumption is named.
    """
    if activation is not None:
        return activation == "sigmoid"
    if config.problem_type is None and output != "logit" and len(config.id2label) > 1:
        labels = ", ".join(map(repr, config.id2label.values()))
        say(
            f"Warning: the classifier's config.json has no problem_type, so {output} assumes that its labels "
            f"({labels}) exclude each other (softmax). If a text can have several of them, as in toxicity models, set "
            "activation: sigmoid; if not, activation: softmax ends this warning."
        )
    return bool(config.problem_type == "multi_label_classification")


def encode_text(tokenizer: Any, text: str, max_tokens: int) -> Encoded:
    """The text as the tokenizer writes it, with its own special tokens; above `max_tokens` it is cut at the
    tokenizer's `truncation_side`. Empty texts may have no ids. A first token that the text spells comes once.
    """
    ids = tokens.encode_text(tokenizer, text)
    if len(ids) <= max_tokens:
        return Encoded(tuple(ids))
    kept = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
    kept = kept[1:] if tokens.starts_twice(tokenizer, kept) else kept
    return Encoded(tuple(kept), len(ids) - len(kept))


def find_label(label: str, labels: Sequence[str]) -> int:
    """The column of `label`: its exact name, else the only name that differs in case alone. Raises ModelError."""
    exact = [column for column, name in enumerate(labels) if name == label]
    matches = exact or [column for column, name in enumerate(labels) if name.casefold() == label.casefold()]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(map(repr, labels))
    if matches:
        raise ModelError(
            f"label {label!r} fits {len(matches)} labels of the classifier ({listed}): the reward would be a guess. "
            "Write the label exactly, and rename equal labels in config.json."
        )
    raise ModelError(
        f"the classifier has no label {label!r}: its labels are {listed}, and none is taken by position. "
        f"{did_you_mean(label, labels)}"
    )
