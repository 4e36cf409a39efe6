"""Reward training: pairs and labels, crops, whole runs, and saved models that plain transformers reads alike."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.model import LoraForm
from hydralign.config.reward import CropsConfig, Labels, RewardConfig
from hydralign.errors import DataError
from hydralign.methods.reward import (
    Labelled,
    Pair,
    RewardParts,
    balanced_weights,
    cropped,
    judge_labels,
    judge_pairs,
    label_loss,
    outputs_of,
    pair_loss,
    train_on_labels,
    train_on_pairs,
)
from hydralign.models.classifiers.training import SequenceClassifier, wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.runs.reward import label_columns
from hydralign.runs.reward_record import reward_record, sentence
from hydralign.tracking import JsonLines, Trackers
from tests.conftest import FORMS

PAIRS = [Pair((5, 6, good), (5, 6, bad)) for good, bad in [(20, 30), (21, 31), (22, 32), (20, 32), (21, 30), (22, 31)]]
TEXTS = [Labelled((5, 6, word, 7), int(word >= 30)) for word in (20, 30, 21, 31, 22, 32)]


def scorer(
    tokenizer: Any, family: str = "gpt2", form: str = "full", labels: tuple[str, ...] = ("score",)
) -> SequenceClassifier:
    sizes: dict[str, Any] = {"family": family, "layers": 2, "width": 32, "heads": 2, "context": 32}
    model = make_classifier(tokenizer, **sizes, labels=labels, seed=0)
    return wrap_classifier(model, tokenizer, form=FORMS[form])


def settings(**changes: Any) -> RewardConfig:
    given = {
        "epochs": 30,
        "batch": {"rows": 3, "micro_batch_size": 2},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every": 5},
        "saving": {"checkpoint_every": 4},
    }
    return RewardConfig.model_validate({**given, **changes})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learn_pairs(config: RewardConfig, judge: SequenceClassifier, folder: Path) -> None:
    record = JsonLines(folder)
    try:
        train_on_pairs(config, RewardParts(judge, PAIRS, PAIRS[:3], folder, Trackers(record)))
    finally:
        record.close()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_learned(tokenizer: Any, tmp_path: Path, family: str, form: str) -> None:
    judge = scorer(tokenizer, family, form)
    learn_pairs(settings(), judge, tmp_path)
    judged = judge_pairs(judge, PAIRS, 4)
    assert judged.metrics()["eval/accuracy"] == 1.0
    assert judged.metrics()["eval/loss"] < 0.3
    logged = rows_of(tmp_path)
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert logged[-1]["wins"] == 1.0
    assert sum("eval/accuracy" in row for row in logged) == (30 * 6 // 3 - 1) // 5


def test_labels_and_pieces_of_their_texts_are_learned(tokenizer: Any, tmp_path: Path) -> None:
    judge = scorer(tokenizer, "bert", labels=("BAD", "GOOD"))
    record = JsonLines(tmp_path)
    parts = RewardParts(judge, TEXTS, TEXTS, tmp_path, Trackers(record))
    # At the pairs' rate of 1e-2 one of five seeds ends at log 2; at 3e-3 six of six end at 0.02 or below.
    slower = settings(optimizer={"learning_rate": 3e-3})
    train_on_labels(slower, parts, crops=CropsConfig(per_text=1, min_tokens=2, max_tokens=3), seed=3)
    record.close()
    judged = judge_labels(judge, TEXTS, 4)
    assert judged.metrics()["eval/accuracy"] == 1.0
    assert judged.confidence_N.min() > 0.5


def test_constant_scorer_is_right_half_of_the_time_and_says_that_it_tied(tokenizer: Any) -> None:
    judge = scorer(tokenizer)
    with torch.no_grad():
        judge.model.score.weight.zero_()
    judged = judge_pairs(judge, PAIRS, 4)
    record = reward_record(judged)
    assert (record["accuracy"], record["ties"], record["margin"], record["n"]) == (0.5, 6, 0.0, 6)
    assert record["loss"] == pytest.approx(math.log(2))
    assert "6 ties counted as half right" in sentence(judged)


def test_loss_and_gradients_do_not_depend_on_micro_batches(tokenizer: Any) -> None:
    cases: list[tuple[Any, list[Any]]] = [(pair_loss, PAIRS), (label_loss, TEXTS)]
    for loss, rows in cases:
        gradients = []
        for micro in (6, 4, 1):
            judge = scorer(tokenizer, labels=("score",) if loss is pair_loss else ("a", "b"))
            for start in range(0, len(rows), micro):
                loss(judge, rows[start : start + micro], 6.0)[0].backward()
            gradients.append({name: p.grad for name, p in judge.trained().items()})
        for other in gradients[1:]:
            for name, gradient in gradients[0].items():
                torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


def test_pair_loss_is_the_logistic_loss_of_the_margin(tokenizer: Any) -> None:
    judge = scorer(tokenizer)
    score_N = outputs_of(judge, [PAIRS[0].chosen, PAIRS[0].rejected], 1)[:, 0]
    wanted = -torch.nn.functional.logsigmoid(score_N[0] - score_N[1])
    loss, stats = pair_loss(judge, PAIRS[:1], 4.0)
    assert float(loss.detach()) == pytest.approx(float(wanted) / 4, abs=1e-6)
    assert float(stats["margin"]) == pytest.approx(float(score_N[0] - score_N[1]), abs=1e-6)


def test_crops_are_pieces_of_the_text_of_the_wanted_lengths(tokenizer: Any) -> None:
    text = "this that and the other thing of small plain words that are enough"
    whole = Labelled(tuple(tokenizer(text).input_ids), 1)
    crops = CropsConfig(min_tokens=4, max_tokens=8)
    lengths = set()
    for where, length in [(0.0, 0.0), (0.99, 0.99), (0.5, 0.3), (0.7, 0.6), (0.2, 0.9)]:
        piece = cropped(whole, crops, tokenizer, where, length)
        assert tokenizer.decode(piece.ids) in text
        assert piece.label == 1
        lengths.add(len(piece.ids))
    assert lengths <= set(range(2, 10))
    assert len(lengths) > 2
    assert cropped(Labelled((5, 6), 0), crops, tokenizer, 0.5, 0.5).ids == (5, 6)


def test_labels_get_the_names_of_the_recipe_in_its_order() -> None:
    named = Labels(type="labels", names={"1": "POSITIVE", "0": "NEGATIVE"})
    assert list(label_columns(named, ["0", "1"]).items()) == [("1", "POSITIVE"), ("0", "NEGATIVE")]
    assert label_columns(Labels(type="labels"), ["b", "a", "b"]) == {"a": "a", "b": "b"}
    with pytest.raises(DataError, match="no name for the labels '2'"):
        label_columns(named, ["0", "2"])
    with pytest.raises(DataError, match="single label 'a'"):
        label_columns(Labels(type="labels"), ["a", "a"])


def test_resumed_run_equals_an_uninterrupted_one(tokenizer: Any, tmp_path: Path) -> None:
    whole, again = scorer(tokenizer), scorer(tokenizer)
    config = settings(epochs=6)
    learn_pairs(config, whole, tmp_path / "whole")
    learn_pairs(config, scorer(tokenizer), tmp_path / "stopped")
    # As if the machine had stopped after step 8: later checkpoints and rows are gone, or half written.
    newest = tmp_path / "stopped" / "checkpoints" / "step-12"
    first = scorer(tokenizer)
    learn_pairs(settings(epochs=6, saving={"checkpoint_every": 4, "keep": 9}), first, tmp_path / "kept")
    assert (tmp_path / "kept" / "checkpoints" / "step-8").is_dir()
    for step in (12,):
        for file in (tmp_path / "kept" / "checkpoints" / f"step-{step}").iterdir():
            file.unlink()
        (tmp_path / "kept" / "checkpoints" / f"step-{step}").rmdir()
    learn_pairs(config, again, tmp_path / "kept")
    assert newest.is_dir()
    assert rows_of(tmp_path / "kept") == rows_of(tmp_path / "whole")
    for name, parameter in whole.trained().items():
        assert torch.equal(parameter, again.trained()[name]), name


PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="right")
batch = tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)
with torch.no_grad():
    print(json.dumps([model(**batch).logits.tolist(), model.config.id2label]))
"""


@pytest.mark.parametrize("form", ["full", "lora"])
def test_saved_classifier_gives_plain_transformers_the_same_scores(tokenizer: Any, tmp_path: Path, form: str) -> None:
    judge = scorer(tokenizer, "gpt2", form, labels=("NEGATIVE", "POSITIVE"))
    record = JsonLines(tmp_path / "run")
    parts = RewardParts(judge, TEXTS, TEXTS, tmp_path / "run", Trackers(record))
    train_on_labels(settings(), parts)
    record.close()
    judge.divide_outputs(1.7)
    judge.save(tmp_path / "model")
    texts = ["this", "that and this thing", "other words"]
    ids = [tuple(tokenizer(text).input_ids) for text in texts]
    wanted = outputs_of(judge, ids, 2).tolist()
    arguments = [sys.executable, "-c", PLAIN, str(tmp_path / "model"), json.dumps(texts)]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True)
    got, labels = json.loads(out.stdout.splitlines()[-1])
    assert labels == {"0": "NEGATIVE", "1": "POSITIVE"}
    for ours, theirs in zip(wanted, got, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert isinstance(FORMS["lora"], LoraForm)


def test_balanced_labels_weigh_the_same_in_all(tokenizer: Any) -> None:
    texts = [Labelled((5, 6), 0), Labelled((7,), 0), Labelled((8, 9), 0), Labelled((10, 11, 12), 1)]
    weights_C = balanced_weights(texts, ("COMMON", "RARE"))
    assert weights_C.tolist() == pytest.approx([4 / 6, 2.0])
    judge = scorer(tokenizer, labels=("COMMON", "RARE"))
    each = [float(label_loss(judge, [text], 1.0)[0].detach()) for text in texts]
    weighted, numbers = label_loss(judge, texts, 4.0, weights_C)
    assert float(weighted.detach()) == pytest.approx((sum(each[:3]) * 4 / 6 + each[3] * 2) / 4, abs=1e-5)
    plain, same = label_loss(judge, texts, 4.0)
    assert float(plain.detach()) == pytest.approx(sum(each) / 4, abs=1e-5)
    assert numbers == same
    with pytest.raises(DataError, match="no text to train on has the label 'NEVER'"):
        balanced_weights(texts, ("COMMON", "RARE", "NEVER"))
