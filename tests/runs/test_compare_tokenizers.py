"""A comparison needs one vocabulary: tokenizers are compared by what their ids mean, not by their size."""

from __future__ import annotations

import pytest

from hydralign.errors import TokenizerError
from hydralign.models import train_tokenizer
from hydralign.runs.compare import require_same_tokens
from hydralign.testing import TEXT, tiny_tokenizer
from tests.tokenizers_of_every_kind import llama_tokenizer


def test_tokenizers_of_equal_size_with_other_tokens_are_refused() -> None:
    first, second = tiny_tokenizer(), train_tokenizer(["other words altogether, quite unlike: zebras"], vocabulary=300)
    assert len(first) >= len(second) > 280
    with pytest.raises(
        TokenizerError, match=r"different tokenizers: id \d+ is '.*' in the first and '.*' in the second"
    ):
        require_same_tokens(first, second)
    with pytest.raises(TokenizerError, match="have different tokenizers"):
        require_same_tokens(first, llama_tokenizer())


def test_equal_tokens_that_cut_texts_otherwise_are_refused() -> None:
    first, second = tiny_tokenizer(), tiny_tokenizer()
    second.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    with pytest.raises(TokenizerError, match="encode 'The film was good.*differently"):
        require_same_tokens(first, second)


def test_the_same_tokenizer_with_another_pad_or_an_added_token_is_accepted() -> None:
    first, second = tiny_tokenizer(), train_tokenizer([TEXT] * 3, vocabulary=300)
    second.pad_token = second.eos_token
    second.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    require_same_tokens(first, second)
    require_same_tokens(second, first)
