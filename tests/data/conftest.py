"""Tiny byte-level BPE tokenizers: plain, with tokens put around every text, and with a chat template."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = ["the film was good and the end was bad", "a good film with a bad end", "who was the good one in the end"]


def byte_level_tokenizer(*, brackets: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """Every byte has a token. `brackets` puts <s> before and </s> behind every text, as Llama or T5 may."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    if brackets:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def bracket_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(brackets=True)


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(template=TEMPLATE)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a file (compressed, when its name ends in .gz) and gives its path."""

    def to_file(name: str, content: str) -> str:
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return str(path)

    return to_file


@pytest.fixture
def write_lines(write: Callable[[str, str], str]) -> Callable[[str, Sequence[Mapping[str, Any]]], str]:
    """Writes rows as JSON lines and gives the file's path."""
    return lambda name, rows: write(name, "".join(json.dumps(row) + "\n" for row in rows))
