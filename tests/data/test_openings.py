"""Demonstrations that are cut out of texts: the opening is the prompt of the same cut, the rest is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hydralign.config import DemonstrationSourceConfig, PromptSourceConfig
from hydralign.config.data import CutConfig, HashSplit, NoSplit, SourceSplit
from hydralign.data import encode_prompts, load_demonstrations, load_prompts
from hydralign.data.packing import sequences
from hydralign.encoder_input import mark_for_encoder
from hydralign.errors import ConfigError, DataError, TokenizerError
from tests.data.conftest import byte_level_tokenizer

CUT = CutConfig(min_tokens=2, max_tokens=8)
NONE = NoSplit(by="none")
TEXTS = [f"the film  number {n} was good\n and who knows what the end of {n * n} films may bring " for n in range(200)]
ROWS = [{"text": text} for text in TEXTS]


def config(**settings: Any) -> dict[str, Any]:
    return {"source": "unused", "cut": CUT, "held_out": NONE, **settings}


def kinds() -> dict[str, Any]:
    """A decoder's tokenizer with and without a first token, and an encoder's."""
    reads = byte_level_tokenizer(brackets=True)
    mark_for_encoder(reads, 512)
    return {"plain": byte_level_tokenizer(), "first": byte_level_tokenizer(brackets=True), "encoder": reads}


@pytest.mark.parametrize("kind", ["plain", "first", "encoder"])
def test_opening_is_the_prompt_of_the_same_seed_and_both_together_are_the_text(kind: str) -> None:
    tokenizer = kinds()[kind]
    asked = load_prompts(PromptSourceConfig(**config()), tokenizer, seed=3, rows=ROWS).train
    shown = load_demonstrations(DemonstrationSourceConfig(**config()), tokenizer, seed=3, rows=ROWS).train
    assert [one.prompt + one.completion for one in shown] == TEXTS
    assert [one.prompt for one in shown] == [one.text for one in asked]
    assert encode_prompts(tokenizer, [one.prompt for one in shown]) == [one.token_ids for one in asked]
    assert len({one.prompt for one in shown}) > 5
    other = load_demonstrations(DemonstrationSourceConfig(**config()), tokenizer, seed=4, rows=ROWS).train
    assert [one.prompt for one in other] != [one.prompt for one in shown]


@pytest.mark.parametrize("kind", ["plain", "first", "encoder"])
def test_rest_is_learned_with_its_white_space(kind: str) -> None:
    tokenizer = kinds()[kind]
    shown = load_demonstrations(DemonstrationSourceConfig(**config()), tokenizer, rows=ROWS).train
    made, counts = sequences(shown, tokenizer, (tokenizer.eos_token_id,), max_tokens=512)
    assert counts == {}
    for one, text in zip(made, TEXTS, strict=True):
        prompt, rest = one.ids[: one.learned_from].tolist(), one.ids[one.learned_from :].tolist()
        assert rest[-1] == tokenizer.eos_token_id
        parts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, rest)]
        assert "".join(parts) == text


def test_rest_keeps_its_space_after_a_tokenizer_that_puts_one_before_every_text() -> None:
    words = ["the", "film", "was", "good"]
    vocabulary = {word: n for n, word in enumerate(["<s>", "</s>", "▁", *(f"▁{word}" for word in words), *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="▁"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    cut = CutConfig(min_tokens=2, max_tokens=2)
    source = DemonstrationSourceConfig(**config(cut=cut))
    (made,) = load_demonstrations(source, tokenizer, rows=[{"text": "the film was good"}]).train
    assert (made.prompt, made.completion) == ("the film", " was good")
    (sequence,), _ = sequences([made], tokenizer, (1,), max_tokens=9)
    assert tokenizer.decode(sequence.ids[:-1].tolist()) == "the film was good"


def test_character_of_several_tokens_stays_whole(tokenizer: Any) -> None:
    source = DemonstrationSourceConfig(**config(cut=CutConfig(min_tokens=1, max_tokens=1)))
    (made,) = load_demonstrations(source, tokenizer, rows=[{"text": "éa"}]).train
    assert (made.prompt, made.completion) == ("é", "a")


def test_texts_without_a_rest_are_counted(tokenizer: Any) -> None:
    source = DemonstrationSourceConfig(**config(cut=CutConfig(min_tokens=3, max_tokens=3)))
    report = load_demonstrations(source, tokenizer, rows=[{"text": t} for t in ("xy", "xyz", "xyz\n", "xyzx")]).report
    assert report.train == 1
    assert report.dropped == {
        "with fewer tokens than the length drawn (3 to 3)": 1,
        "with nothing behind the opening": 2,
    }


def test_texts_are_held_out_whole_and_prompts_of_text_go_with_them(tokenizer: Any) -> None:
    split, rows = HashSplit(percent=30, of="text"), [{"text": f"{n:02} {text}"} for n, text in enumerate(TEXTS)]
    shown = load_demonstrations(DemonstrationSourceConfig(**config(held_out=split)), tokenizer, rows=rows)
    asked = load_prompts(PromptSourceConfig(**config(held_out=split)), tokenizer, rows=rows)
    learned = {one.prompt + one.completion for one in shown.train}
    kept_apart = {one.columns["text"] for one in asked.held_out}
    assert kept_apart == {one.prompt + one.completion for one in shown.held_out}
    assert learned.isdisjoint(kept_apart)
    assert 30 < len(kept_apart) < 90  # 60 expected, standard deviation 6.5
    assert not {one.token_ids for one in asked.train} & {one.token_ids for one in asked.held_out}
    whole = load_demonstrations(DemonstrationSourceConfig(**config(cut=None, held_out=split)), rows=rows)
    assert {one.completion for one in whole.held_out} == kept_apart  # what a new tokenizer is trained without
    by_prompt = load_prompts(PromptSourceConfig(**config(held_out=HashSplit(percent=30))), tokenizer, rows=rows)
    assert {one.columns["text"] for one in by_prompt.held_out} != kept_apart


def test_texts_of_a_held_out_source_leave_the_training_side(tokenizer: Any, write_lines: Callable[..., str]) -> None:
    other = SourceSplit(by="source", source=write_lines("test.jsonl", ROWS[:5]))
    data = load_demonstrations(DemonstrationSourceConfig(**config(held_out=other)), tokenizer, rows=ROWS)
    assert (data.report.train, data.report.held_out) == (195, 5)


def test_cut_needs_a_text_column_and_a_tokenizer_that_knows_places(tokenizer: Any) -> None:
    source = DemonstrationSourceConfig(**config())
    with pytest.raises(DataError, match=r"demonstrations that are cut: `text` is needed"):
        load_demonstrations(source, tokenizer, rows=[{"prompt": "a", "completion": "b"}])
    with pytest.raises(ConfigError, match="cut counts tokens, and no tokenizer is given"):
        load_demonstrations(source, rows=ROWS)

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *texts: Any, **options: Any) -> Any:
            return tokenizer(*texts, **options)

    with pytest.raises(TokenizerError, match="Slow does not say where its tokens stand"):
        load_demonstrations(source, Slow(), rows=ROWS)
