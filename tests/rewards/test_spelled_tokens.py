"""Texts that spell special tokens, as chat templates do: one beginning-of-sequence token, in training and scoring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from hydralign.config import Recipe
from hydralign.data.packing import sequences
from hydralign.data.tokens import encode_prompts
from hydralign.distributed import SINGLE_PROCESS
from hydralign.errors import TokenizerError
from hydralign.generation.sampler import check_context
from hydralign.models import make_policy
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.rewards import ClassifierReward, RewardModel
from hydralign.rewards.classifier import encode_for_classifier
from hydralign.rewards.reward_model import encode
from hydralign.runs.kinds import all_steps
from hydralign.runs.preflight import check_steps
from hydralign.runs.sft import load_sft
from hydralign.testing import tiny_model, tiny_tokenizer
from hydralign.types import Demonstration, Prompt, SamplingParams
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
        "classifier": encode_for_classifier(tokenizer, prompt + answer, 32).ids,
        "cut": encode_for_classifier(tokenizer, prompt + answer, 5).ids,
    }
    assert {name: ids.count(BOS) for name, ids in rows.items()} == dict.fromkeys(rows, 1)
    assert {ids[0] for ids in rows.values()} == {BOS}
    assert len(rows["cut"]) <= 5
    plain = encode(tokenizer, "the film was", answer, True).ids
    assert len(plain) == len(rows["reward model"])


def test_spelled_token_without_an_embedding_row_is_named_by_all_that_read_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"family": "gpt2", "layers": 1, "width": 16, "heads": 2, "context": 32}
    model, judge, score = (
        tiny_model(tokenizer),
        make_classifier(tokenizer, **sizes, labels=("no", "yes")),
        make_classifier(tokenizer, **sizes, labels=("score",)),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = "this <image>"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n in range(20)))
    recipe = Recipe.model_validate(
        {
            "output": str(tmp_path / "out"),
            "model": {"path": str(tmp_path / "model")},
            "sft": {
                "data": {"source": str(tmp_path / "rows.jsonl"), "held_out": {"by": "last_percent", "percent": 40}}
            },
        }
    ).resolved()
    prompt = Prompt(text, tuple(tokenizer(text).input_ids))
    readers: dict[str, Callable[[], Any]] = {
        "policy": lambda: check_context(make_policy(model, tokenizer), [prompt], SamplingParams(max_new_tokens=2)),
        "classifier": lambda: ClassifierReward(judge, tokenizer, label="yes")([text], [" b"]),
        "reward model": lambda: RewardModel(score, tokenizer)([text], [" b"]),
        "sft": lambda: load_sft(recipe, recipe.sft, SINGLE_PROCESS),  # type: ignore[arg-type]
        "check": lambda: check_steps(recipe, all_steps(recipe), ["sft"], SINGLE_PROCESS),
    }
    for read in readers.values():
        with pytest.raises(TokenizerError, match=r"spells '<image>' \(id 300\).*replace: \{\"<image>\": \"\"\}"):
            read()
