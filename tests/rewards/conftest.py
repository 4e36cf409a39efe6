"""Tiny classifiers and reward models in folders, with random weights and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>"]
WORDS = [*SPECIAL, "good", "bad", "film", "the", "a", "very", "dull", "ending", "was"]


def word_tokenizer(*, brackets: bool) -> PreTrainedTokenizerFast:
    """One id per word; `brackets` puts [CLS] and [SEP] around, as encoders want."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if brackets:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="<eos>")


@pytest.fixture
def bert_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a BERT classifier folder; equal seeds give equal weights, whatever the labels are called."""

    def make(labels: list[str] | None, name: str = "bert", positions: int = 32, **changes: Any) -> Path:
        torch.manual_seed(0)
        named = {} if labels is None else {"id2label": dict(enumerate(labels))}
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=positions,
            initializer_range=0.5,
            pad_token_id=0,
            **named,
            **changes,
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        word_tokenizer(brackets=True).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a GPT-2 sequence classifier folder; one output is a reward model."""

    def make(name: str = "gpt2", pad_token_id: int | None = 0, num_labels: int = 1) -> Path:
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=len(WORDS),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            initializer_range=0.5,
            num_labels=num_labels,
            pad_token_id=pad_token_id,
            eos_token_id=4,
            bos_token_id=4,
        )
        GPT2ForSequenceClassification(config).save_pretrained(tmp_path / name)
        word_tokenizer(brackets=False).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
