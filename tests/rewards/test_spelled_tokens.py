"""Texts that spell special tokens, as chat templates do: one beginning-of-sequence token, in training and scoring."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import processors

from hydralign.data.packing import sequences
from hydralign.data.tokens import encode_prompts
from hydralign.rewards.classifier import encode_text
from hydralign.rewards.learned import encode
from hydralign.types import Demonstration
from tests.tokenizers_of_every_kind import byte_level_tokenizer, llama_tokenizer

BOS, EOS = 1, 2


def bracketed() -> Any:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), bracketed()], ids=["llama", "bracketed"])
@pytest.mark.parametrize("spelled", ["", "<s>"])
def test_text_begins_with_one_bos_whether_it_spells_it_or_not(tokenizer: Any, spelled: str) -> None:
    prompt, answer = f"{spelled}the film was", " good"
    (learned,), _ = sequences([Demonstration(prompt, answer)], tokenizer, (EOS,), max_tokens=32)
    (alone,), _ = sequences([Demonstration("", prompt + answer)], tokenizer, (EOS,), max_tokens=32)
    rows = {
        "prompt": encode_prompts(tokenizer, [prompt])[0],
        "demonstration": tuple(learned.ids.tolist()),
        "text": tuple(alone.ids.tolist()),
        "reward model": encode(tokenizer, prompt, answer, True).ids,
        "classifier": encode_text(tokenizer, prompt + answer, 32).ids,
        "cut": encode_text(tokenizer, prompt + answer, 5).ids,
    }
    assert {name: ids.count(BOS) for name, ids in rows.items()} == dict.fromkeys(rows, 1)
    assert {ids[0] for ids in rows.values()} == {BOS}
    assert len(rows["cut"]) <= 5
    plain = encode(tokenizer, "the film was", answer, True).ids
    assert len(plain) == len(rows["reward model"])
