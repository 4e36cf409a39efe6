"""Models from scratch: one trunk per family whatever the head, named outputs, and families that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hydralign.errors import ModelError
from hydralign.models.folders.from_scratch import make_classifier, make_model

SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_classifier_has_the_trunk_of_the_language_model_with_its_seed(family: str, tokenizer: Any) -> None:
    model = make_model(tokenizer, family=family, **SIZES, seed=3)
    classifier = make_classifier(tokenizer, family=family, **SIZES, labels=["score"], seed=3)
    trunk, other = model.base_model.state_dict(), classifier.base_model.state_dict()
    assert trunk.keys() == other.keys()
    assert all(torch.equal(trunk[name], other[name]) for name in trunk)
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_classifier_names_its_outputs_in_order(family: str, tokenizer: Any) -> None:
    model = make_classifier(tokenizer, family=family, **SIZES, labels=["bad", "good", "so-so"])
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert model.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert (model.config.num_labels, model.config.problem_type) == (3, "single_label_classification")
    assert model.config.pad_token_id == tokenizer.pad_token_id != model.config.eos_token_id
    ids = torch.tensor([[5, 6, 7]])
    assert model.train()(input_ids=ids).logits.shape == (1, 3)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits), "dropout is on"


def test_one_label_makes_a_reward_model(tokenizer: Any) -> None:
    model = make_classifier(tokenizer, family="gpt2", **SIZES, labels=["score"])
    assert (model.config.num_labels, model.config.problem_type) == (1, None)
    assert model.score.weight.shape == (1, 16)


def test_equal_seeds_give_equal_classifiers_and_leave_the_global_state(tokenizer: Any) -> None:
    torch.manual_seed(5)
    first, second, other = (
        make_classifier(tokenizer, family="bert", **SIZES, labels=["a", "b"], seed=seed) for seed in (1, 1, 2)
    )
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_bert_without_cls_learns_from_words_in_the_middle(tokenizer: Any) -> None:
    """The label is whether token 20 or 21 stands among others; the first token, where it is read, says nothing."""
    model = make_classifier(tokenizer, family="bert", **SIZES, labels=["no", "yes"])
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(30, 40, (32, 6), generator=generator)
    label_B = torch.arange(32) % 2
    ids_BT[torch.arange(32), 1 + torch.arange(32) % 5] = 20 + label_B
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(input_ids=ids_BT, labels=label_B).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.693, abs=0.05)
    assert losses[-1] < 0.05


def test_bert_is_refused_as_a_language_model(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no next token to predict"):
        make_model(tokenizer, family="bert", **SIZES)


@pytest.mark.parametrize("make", [make_model, lambda *a, **k: make_classifier(*a, **k, labels=["a"])])
def test_unknown_family_is_refused(make: Any, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="family='mamba' cannot be made .* gpt2, llama, bert"):
        make(tokenizer, family="mamba", **SIZES)


@pytest.mark.parametrize("labels", [[], ["a", "a"]])
def test_labels_that_name_no_output_are_refused(labels: list[str], tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="outputs are found by name"):
        make_classifier(tokenizer, family="gpt2", **SIZES, labels=labels)
