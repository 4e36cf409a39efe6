"""Prompts longer than their bound: what is cut, left out, counted, and what stays as it was for a decoder."""

from __future__ import annotations

from typing import Any

import pytest

from hydralign.config import DemonstrationSourceConfig, PromptSourceConfig
from hydralign.config.data import HashSplit, NoSplit
from hydralign.data import load_demonstrations, load_prompts
from hydralign.data.packing import sequences
from hydralign.data.prompt_limits import prompt_limit
from hydralign.encoder_input import encoder_limit, mark_for_encoder
from hydralign.errors import ConfigError, DataError
from hydralign.types import Demonstration
from tests.data.conftest import byte_level_tokenizer

NONE = NoSplit(by="none")
LONG = "abcdefghijkl"  # every letter is a token of its own


def encoder(positions: int | None = 8, longest: int | None = None) -> Any:
    """A tokenizer that puts <s> before and </s> behind what an encoder with so many positions reads."""
    tokenizer = byte_level_tokenizer(brackets=True)
    mark_for_encoder(tokenizer, positions)
    if longest is not None:
        tokenizer.model_max_length = longest
    return tokenizer


def load(tokenizer: Any, *texts: str, **settings: Any) -> Any:
    config = PromptSourceConfig(source="unused", **{"held_out": NONE, **settings})
    return load_prompts(config, tokenizer, rows=[{"prompt": text} for text in texts])


def test_an_encoder_reads_what_its_positions_and_its_tokenizer_allow(tokenizer: Any) -> None:
    assert encoder_limit(tokenizer) is None  # a decoder has no bound on prompts alone
    assert encoder_limit(encoder(None)) is None
    assert encoder_limit(encoder(8)) == 8
    assert encoder_limit(encoder(None, 512)) == 512  # relative positions, as in T5
    assert encoder_limit(encoder(1024, 512)) == 512


@pytest.mark.parametrize(
    ("too_long", "text"), [("cut_end", "abcdef"), ("cut_start", "ghijkl"), ("leave_out", None), ("error", None)]
)
def test_prompt_is_cut_on_the_named_side_and_keeps_its_frame(too_long: str, text: str | None) -> None:
    tokenizer = encoder()
    if too_long == "error":
        with pytest.raises(DataError, match=r"14 tokens, and at most 8 are read.*cut_start or cut_end"):
            load(tokenizer, LONG, "abc")
        return
    data = load(tokenizer, LONG, "abc", too_long_prompt=too_long)
    if text is None:
        assert [prompt.text for prompt in data.train] == ["abc"]
        assert data.report.dropped == {"with a prompt longer than 8 tokens, left out": 1}
        return
    long, short = data.train
    assert (long.text, long.token_ids) == (text, tuple(tokenizer(text).input_ids))
    assert short.token_ids == tuple(tokenizer("abc").input_ids)
    side = {"cut_end": "end", "cut_start": "beginning"}[too_long]
    assert f"Of them 1 with a prompt longer than 8 tokens, cut at the {side}." in data.report.describe()


@pytest.mark.parametrize(("too_long", "text"), [("cut_end", "<<abcd>>"), ("cut_start", "<<ijkl>>")])
def test_words_of_a_template_stay_when_what_fills_it_is_cut(too_long: Any, text: str) -> None:
    tokenizer = encoder(10)
    settings: dict[str, Any] = {"template": "<<{prompt}>>", "too_long_prompt": too_long}
    (made,) = load(tokenizer, LONG, **settings).train
    assert (made.text, made.token_ids) == (text, tuple(tokenizer(text).input_ids))
    config = DemonstrationSourceConfig(source="unused", held_out=NONE, **settings)
    rows = load_demonstrations(config, rows=[{"prompt": LONG, "completion": "x"}]).train
    (one,), _ = sequences(rows, tokenizer, (1,), max_tokens=8, prompts=prompt_limit(config, tokenizer))
    assert one.ids[: one.learned_from].tolist() == tokenizer(text).input_ids
    with pytest.raises(DataError, match="words of the template have 6 tokens.*at most 6 are read"):
        load(encoder(6), LONG, **settings)


def test_decoders_read_long_prompts_as_before_until_a_bound_is_named(tokenizer: Any) -> None:
    assert [prompt.text for prompt in load(tokenizer, LONG).train] == [LONG]
    data = load(tokenizer, LONG, max_prompt_tokens=5, too_long_prompt="cut_start")
    assert [prompt.text for prompt in data.train] == ["hijkl"]
    with pytest.raises(ConfigError, match="too_long_prompt=cut_end without max_prompt_tokens"):
        load(tokenizer, LONG, too_long_prompt="cut_end")
    with pytest.raises(ConfigError, match=r"max_prompt_tokens=9 is above the 8 tokens that the encoder reads"):
        load(encoder(), LONG, max_prompt_tokens=9)


def test_cut_prompts_stay_on_their_side_and_equal_ones_leave_the_training_side() -> None:
    tokenizer, split = encoder(), HashSplit(percent=40)
    texts = [f"{head}{n:06}" for head in ("abcd", "efgh") for n in range(30)]
    whole = load(encoder(None), *texts, held_out=split)
    cut = load(tokenizer, *texts, held_out=split, too_long_prompt="cut_start")
    assert {one.columns["prompt"] for one in cut.held_out} == {one.text for one in whole.held_out}
    assert not {one.token_ids for one in cut.train} & {one.token_ids for one in cut.held_out}
    assert cut.report.dropped["whose prompt is held out"] > 0
    assert cut.report.cut_prompts == cut.report.kept


@pytest.mark.parametrize(("too_long", "text"), [("cut_end", "abcdef"), ("cut_start", "ghijkl"), ("leave_out", None)])
def test_demonstrations_lose_prompt_tokens_and_no_answer(too_long: Any, text: str | None) -> None:
    tokenizer = encoder()
    source = DemonstrationSourceConfig(source="unused", too_long_prompt=too_long)
    rows = [Demonstration(LONG, "film"), Demonstration("abc", "x" * 20)]
    made, counts = sequences(
        rows, tokenizer, (tokenizer.eos_token_id,), max_tokens=8, prompts=prompt_limit(source, tokenizer)
    )
    assert counts.pop("with a completion longer than 8 tokens, cut at the end") == 1
    assert list(counts.values()) == [1]
    answers = [one.ids[one.learned_from :].tolist() for one in made]
    assert answers[-1] == list(tokenizer("x" * 8, add_special_tokens=False).input_ids)
    if text is None:
        assert len(made) == 1
    else:
        assert made[0].ids[: made[0].learned_from].tolist() == tokenizer(text).input_ids
        assert answers[0] == [*tokenizer("film", add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def test_demonstrations_of_a_decoder_are_bounded_together(tokenizer: Any) -> None:
    rows = load_demonstrations(
        DemonstrationSourceConfig(source="unused", held_out=NONE), rows=[{"prompt": LONG, "completion": "xyz"}]
    ).train
    (made,), counts = sequences(rows, tokenizer, (tokenizer.eos_token_id,), max_tokens=14)
    assert (len(made.ids), made.learned, counts) == (14, 2, {"longer than 14 tokens, cut at the end": 1})


def test_bound_of_a_source_is_checked_against_what_the_encoder_reads() -> None:
    source = DemonstrationSourceConfig(source="unused", max_prompt_tokens=6, too_long_prompt="cut_end")
    limit = prompt_limit(source, encoder())
    assert limit is not None
    assert limit.apply((0, 5, 6, 7, 8, 9, 1)) == (0, 5, 6, 7, 8, 1)
    assert limit.apply((0, 5, 1)) == (0, 5, 1)
