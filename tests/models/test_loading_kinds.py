"""Folders that look like a language model's: classifiers, bodies without a head, odd generation settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2Model,
    LlamaModel,
)

from hydralign.errors import ModelError
from hydralign.models import load_policy, make_policy
from hydralign.models.classifiers.training import wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.folders.loading import load_model, stop_ids_of
from hydralign.models.folders.merged import load_merged
from hydralign.models.forms.build import load_supervised_policy
from hydralign.testing import tiny_model

LOADERS: tuple[Callable[[str], Any], ...] = (load_policy, load_supervised_policy, load_merged)


def save(model: Any, tokenizer: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, GPT2ForTokenClassification, GPT2ForQuestionAnswering])
def test_model_that_writes_nothing_is_refused_by_its_architecture(kind: Any, tmp_path: Path, tokenizer: Any) -> None:
    folder = save(kind(tiny_model(tokenizer).config), tokenizer, tmp_path / "model")
    for load in LOADERS:
        with pytest.raises(ModelError, match=rf"is a {kind.__name__} by its config.*Name the language model"):
            load(folder)


@pytest.mark.parametrize("weight", ["score.weight", "classifier.out_proj.bias", "qa_outputs.weight"])
@pytest.mark.parametrize("architectures", [None, ["GPT2LMHeadModel"], ["GPT2Model"]])
def test_head_of_a_classifier_is_refused_by_its_weight(
    weight: str, architectures: list[str] | None, tmp_path: Path, tokenizer: Any
) -> None:
    folder = Path(save(tiny_model(tokenizer), tokenizer, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, weight: torch.zeros(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    with pytest.raises(ModelError, match=f"holds the weight {weight}, .* reward"):
        load_model(str(folder))


def test_body_is_a_language_model_only_where_its_embeddings_are_the_head(tmp_path: Path, tokenizer: Any) -> None:
    tied = tiny_model(tokenizer)
    body = GPT2Model(tied.config)
    body.load_state_dict(tied.transformer.state_dict())
    loaded, _ = load_model(save(body, tokenizer, tmp_path / "tied"))
    ids = torch.arange(5)[None]
    torch.testing.assert_close(loaded(ids).logits, tied(ids).logits, atol=1e-5, rtol=0)
    config = tiny_model(tokenizer, family="llama").config
    config.tie_word_embeddings = False
    folder = save(LlamaModel(config), tokenizer, tmp_path / "untied")
    with pytest.raises(ModelError, match=r"lacks the weights lm_head\.weight: they would be"):
        load_model(folder)


ODD: dict[str, tuple[dict[str, Any], set[str]]] = {
    "early stopping": ({"early_stopping": True}, {"early_stopping"}),
    "length penalty": ({"length_penalty": 2.0}, {"length_penalty"}),
    "beams": ({"length_penalty": 2.0, "num_beams": 3}, set()),
    "sampling": ({"temperature": 0.5, "top_p": 0.9, "do_sample": False}, {"temperature", "top_p"}),
    "fits": ({"temperature": 0.5, "do_sample": True}, set()),
    "scores": ({"output_scores": True}, {"output_scores"}),
    "not loaded": ({"early_stopping": "sometimes", "top_k": 7, "do_sample": True}, {"early_stopping"}),
    "negative": ({"max_new_tokens": -1}, {"max_new_tokens"}),
    "watermark": ({"watermarking_config": 3}, {"watermarking_config"}),
    "several": (
        {"num_return_sequences": 4, "cache_implementation": "x"},
        {"num_return_sequences", "cache_implementation"},
    ),
    "end": ({"eos_token_id": "x"}, {"eos_token_id"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_generation_settings_that_would_not_be_saved_are_left_out_and_named(
    case: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, dropped = ODD[case]
    folder = Path(save(tiny_model(tokenizer), tokenizer, tmp_path / "model"))
    file = folder / "generation_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "pad_token_id": None, "eos_token_id": [0, 7], **settings})
    )
    policy = load_policy(str(folder))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("Left out") == bool(dropped)
    assert all(name in told for name in dropped)
    policy.save(tmp_path / "after")
    saved = json.loads((tmp_path / "after/generation_config.json").read_text())
    kept = settings.keys() - dropped - {"do_sample"}
    assert {name: saved.get(name) for name in kept} == {name: settings[name] for name in kept}
    assert not saved.keys() & dropped
    assert policy.stop_ids == ((0,) if "eos_token_id" in settings else (0, 7))
    AutoModelForCausalLM.from_pretrained(tmp_path / "after")


@pytest.mark.parametrize("content", ["{torn", "[]", "", "null", "[" * 100_000])
def test_damaged_generation_config_is_left_out_and_named(
    content: str, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(save(tiny_model(tokenizer), tokenizer, tmp_path / "model"))
    (folder / "generation_config.json").write_text(content)
    policy = load_policy(str(folder))
    assert "generation_config.json cannot be read" in " ".join(capsys.readouterr().err.split())
    assert policy.model.generation_config.eos_token_id == 0
    policy.save(tmp_path / "after")
    AutoModelForCausalLM.from_pretrained(tmp_path / "after")


def test_settings_of_generation_in_a_models_own_config_do_not_keep_it_from_being_saved(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tokenizer)
    model.config.temperature = 0.5
    make_policy(model, tokenizer).save(tmp_path / "policy")
    sizes: dict[str, Any] = {"family": "gpt2", "layers": 1, "width": 16, "heads": 2, "context": 32}
    classifier = make_classifier(tokenizer, **sizes, labels=("score",))
    classifier.config.num_beams = 4
    wrap_classifier(classifier, tokenizer).save(tmp_path / "reward")
    told = capsys.readouterr().err
    assert "temperature" in told
    assert "num_beams" in told


def test_stop_tokens_are_ids_that_the_model_has(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    model.generation_config.eos_token_id = [-1, 7]
    assert stop_ids_of(model, tokenizer) == (tokenizer.eos_token_id, 7)
