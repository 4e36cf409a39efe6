"""Reward training: one score from comparisons, or a classifier from labelled texts.

Comparisons: −log σ(score of the chosen − score of the rejected), mean over pairs (Stiennon et al. 2020, section 3.4).
Labels: cross-entropy, mean over texts. A text is encoded and read here exactly as in evaluation and as a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from hydralign.algorithms.preference_losses import pairwise_logistic_loss
from hydralign.config.reward import CropsConfig, RewardConfig
from hydralign.data.detokenise import decode_completion
from hydralign.data.stream import Stream
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import DataError, NonFiniteError
from hydralign.generation.keyed import CROPS, keyed_uniforms
from hydralign.methods.supervised import SupervisedTask, learn, steps_of
from hydralign.micro_batches import longest_first, map_micro_batches
from hydralign.models.classifiers.training import SequenceClassifier
from hydralign.rewards.classifier import encode_for_classifier
from hydralign.tracking import Trackers

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """One comparison as the classifier reads it."""

    chosen: Ids
    rejected: Ids


@dataclass(frozen=True)
class Labelled:
    """One text as the classifier reads it, and the column of its label."""

    ids: Ids
    label: int


Row = TypeVar("Row", Pair, Labelled)


@dataclass(frozen=True)
class RewardParts(Generic[Row]):
    """What a run of reward training is made of: pairs on both sides, or labelled texts on both."""

    classifier: SequenceClassifier
    train: Sequence[Row]
    held_out: Sequence[Row]
    folder: Path
    records: Trackers
    processes: Distributed = SINGLE_PROCESS


def train_on_pairs(config: RewardConfig, parts: RewardParts[Pair], *, seed: int = 0) -> None:
    """Learn to score the chosen answer above the rejected one. Resumes and raises as `supervised.learn` does."""
    stream = Stream(tuple(parts.train), seed)
    task: SupervisedTask[Pair] = SupervisedTask(
        name="reward",
        trained=parts.classifier.trained(),
        steps=steps_of(config, len(parts.train)),
        batch=lambda step: stream.batch(step, config.batch.rows),
        count=len,
        loss=partial(pair_loss, parts.classifier),
        measure=partial(_measure, parts, config.batch.micro_batch_size, judge_pairs),
        size=lambda pair: len(pair.chosen) + len(pair.rejected),
    )
    learn(task, config, parts.folder, parts.records, processes=parts.processes)


def train_on_labels(
    config: RewardConfig,
    parts: RewardParts[Labelled],
    *,
    crops: CropsConfig | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> None:
    """Learn to name the label of each text, and of `crops` of it; `balanced` gives every label the same weight in all.
    Resumes and raises as `supervised.learn` does.
    """
    copies = 1 + (crops.per_text if crops else 0)
    # Each text stands `copies` times in an epoch, once whole; which copy it is decides what becomes of it.
    stream = Stream(tuple((text, copy) for copy in range(copies) for text in parts.train), seed)

    def batch(step: int) -> list[Labelled]:
        drawn = stream.batch(step, config.batch.rows)
        if crops is None:
            return [text for text, _ in drawn]
        uniform_B2 = keyed_uniforms(
            seed=seed, iteration=step, rows=np.arange(len(drawn)), positions=2, stream=CROPS
        ).tolist()
        return [
            cropped(text, crops, parts.classifier.tokenizer, *uniform) if copy else text
            for (text, copy), uniform in zip(drawn, uniform_B2, strict=True)
        ]

    weights_C = balanced_weights(parts.train, parts.classifier.labels) if balanced else None
    task: SupervisedTask[Labelled] = SupervisedTask(
        name="classifier",
        trained=parts.classifier.trained(),
        steps=steps_of(config, len(stream.rows)),
        batch=batch,
        count=len,
        loss=partial(label_loss, parts.classifier, weights_C=weights_C),
        measure=partial(_measure, parts, config.batch.micro_batch_size, judge_labels),
        size=lambda text: len(text.ids),
    )
    learn(task, config, parts.folder, parts.records, processes=parts.processes)


def pair_loss(classifier: SequenceClassifier, pairs: Sequence[Pair], count: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The pairwise logistic loss of these pairs ÷ `count`, and sums of wins (a tie is half of one), ties and margin."""
    both = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    chosen_B, rejected_B = classifier.outputs(both)[:, 0].split(len(pairs))
    return pairwise_logistic_loss(chosen_B, rejected_B, count=count)


def balanced_weights(texts: Sequence[Labelled], labels: Sequence[str]) -> Tensor:
    """weights_C of the labels, texts ÷ (labels · texts of the label): each weighs the same in all, and a text 1 on
    average. Raises DataError for a label without a text.
    """
    counts_C = torch.tensor([text.label for text in texts]).bincount(minlength=len(labels)).double()
    missing = [label for label, count in zip(labels, counts_C.tolist(), strict=True) if not count]
    if missing:
        raise DataError(
            f"class_weights=balanced, but no text to train on has the label {missing[0]!r}: no weight makes up for "
            "none. Add such texts, leave the label out of names, or leave class_weights out."
        )
    return (len(texts) / (len(counts_C) * counts_C)).float()


def label_loss(
    classifier: SequenceClassifier, texts: Sequence[Labelled], count: float, weights_C: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ cross-entropy in nats of these texts, each times the weight of its label, ÷ `count`; and the sum of those that
    were named rightly.
    """
    logits_BC = classifier.outputs([text.ids for text in texts])
    label_B = torch.tensor([text.label for text in texts], device=logits_BC.device)
    right = (logits_BC.detach().argmax(-1) == label_B).sum()
    weights_C = None if weights_C is None else weights_C.to(logits_BC.device)
    loss = cross_entropy(logits_BC, label_B, weight=weights_C, reduction="sum")
    return loss / count, {"accuracy": right}


def cropped(text: Labelled, crops: CropsConfig, tokenizer: Any, where: float, length: float) -> Labelled:
    """A piece of the text, tokenised anew as a text of its own; two uniform numbers say where it begins and how long
    it is. Texts that are no longer than the piece stay whole.
    """
    wanted = crops.min_tokens + int(length * (crops.max_tokens - crops.min_tokens + 1))
    if len(text.ids) <= wanted:
        return text
    start = int(where * (len(text.ids) - wanted + 1))
    piece = decode_completion(tokenizer, text.ids[:start], text.ids[start : start + wanted])
    ids = encode_for_classifier(tokenizer, piece.strip(), len(text.ids)).ids
    return Labelled(ids, text.label) if ids else text


def cropped_once(texts: Sequence[Labelled], crops: CropsConfig, tokenizer: Any, seed: int) -> list[Labelled]:
    """One piece of each text, other ones than training drew."""
    uniform_N2 = keyed_uniforms(
        seed=seed, iteration=0xFFFF_FFFF, rows=np.arange(len(texts)), positions=2, stream=CROPS
    ).tolist()
    return [cropped(text, crops, tokenizer, *uniform) for text, uniform in zip(texts, uniform_N2, strict=True)]


@torch.no_grad()
def outputs_of(
    classifier: SequenceClassifier, rows: Sequence[Ids], micro_batch_size: int, processes: Distributed = SINGLE_PROCESS
) -> Tensor:
    """logits_NC of all rows in order, float64 on the CPU, the same on every process. Raises NonFiniteError."""
    own = rows[processes.share(len(rows))]
    logits_NC = torch.zeros(len(own), len(classifier.labels), dtype=torch.float64)

    def read(few: list[int]) -> Tensor:
        return classifier.outputs([own[row] for row in few]).double().cpu()

    for few, logits_BC in map_micro_batches(read, longest_first(map(len, own)), micro_batch_size, processes):
        logits_NC[few] = logits_BC
    columns = [processes.gather(column_N.to(processes.device), len(rows)).cpu() for column_N in logits_NC.unbind(1)]
    gathered_NC = torch.stack(columns, dim=1)
    if not bool(torch.isfinite(gathered_NC).all()):
        raise NonFiniteError("held-out scores", "A held-out score is NaN or infinite: the model's weights are broken.")
    return gathered_NC


@dataclass(frozen=True)
class Judged:
    """What a classifier made of given rows, one number per row."""

    right_N: Tensor
    """1 where it was right, 0 where it was wrong, one half for a tie."""
    confidence_N: Tensor
    """The probability that it gave to its own choice."""
    loss_N: Tensor
    """In nats."""
    margin_N: Tensor | None = None
    """Score of the chosen answer − score of the rejected one; None for labels."""
    label_N: Tensor | None = None
    """Column of each text's label; None for comparisons."""
    choice_N: Tensor | None = None
    """Column that it chose for each text; None for comparisons."""

    def metrics(self) -> dict[str, float]:
        """Means under their names in metrics.jsonl."""
        metrics = {"eval/loss": float(self.loss_N.mean()), "eval/accuracy": float(self.right_N.mean())}
        return metrics if self.margin_N is None else metrics | {"eval/margin": float(self.margin_N.mean())}


def judge_pairs(
    classifier: SequenceClassifier,
    pairs: Sequence[Pair],
    micro_batch_size: int,
    processes: Distributed = SINGLE_PROCESS,
) -> Judged:
    """The classifier's choice in each comparison; σ(|margin|) is its confidence."""
    chosen_N, rejected_N = (
        outputs_of(classifier, side, micro_batch_size, processes)[:, 0]
        for side in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    margin_N = chosen_N - rejected_N
    right_N = (margin_N > 0).double() + (margin_N == 0).double() / 2
    return Judged(right_N, margin_N.abs().sigmoid(), -logsigmoid(margin_N), margin_N)


def judge_labels(
    classifier: SequenceClassifier,
    texts: Sequence[Labelled],
    micro_batch_size: int,
    processes: Distributed = SINGLE_PROCESS,
) -> Judged:
    """The classifier's label for each text."""
    return judge_logits(outputs_of(classifier, [text.ids for text in texts], micro_batch_size, processes), texts)


def judge_logits(logits_NC: Tensor, texts: Sequence[Labelled]) -> Judged:
    """What these outputs say of each text's label."""
    label_N = torch.tensor([text.label for text in texts])
    confidence_N, choice_N = logits_NC.softmax(-1).max(-1)
    loss_N = cross_entropy(logits_NC, label_N, reduction="none")
    return Judged((choice_N == label_N).double(), confidence_N, loss_N, label_N=label_N, choice_N=choice_N)


Judge = Callable[[SequenceClassifier, Any, int, Distributed], Judged]


def _measure(parts: RewardParts[Row], micro_batch_size: int, judge: Judge) -> Mapping[str, float]:
    return judge(parts.classifier, parts.held_out, micro_batch_size, parts.processes).metrics()
