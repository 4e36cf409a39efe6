"""Prompts: as they stand, rendered, or cut from texts by a seeded length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hydralign.config.data import CutConfig, FilterConfig, NoSplit, PromptSourceConfig
from hydralign.data import encode_prompts, load_prompts
from hydralign.data.prompts import cut_length
from hydralign.errors import DataError, RowError
from hydralign.types import Prompt

ALL = PromptSourceConfig(source="unused", held_out=NoSplit(by="none"))
CUT = ALL.model_copy(update={"cut": CutConfig(min_tokens=2, max_tokens=8)})
TEXTS = [f"the film number {n} was good and who knows what the end of {n * n} films may bring" for n in range(300)]


def prompts(config: PromptSourceConfig, tokenizer: Any, *rows: dict[str, Any], seed: int = 0) -> tuple[Prompt, ...]:
    return load_prompts(config, tokenizer, seed=seed, rows=rows).train


def test_prompt_keeps_all_columns_of_its_row(tokenizer: Any) -> None:
    for name in ("prompt", "query"):
        row = {name: "the film", "reference": "good"}
        assert prompts(ALL, tokenizer, row) == (Prompt("the film", tuple(tokenizer("the film").input_ids), row),)
    mapped = ALL.model_copy(update={"columns": {"prompt": "question"}})
    assert prompts(mapped, tokenizer, {"question": "the"})[0].columns == {"question": "the", "prompt": "the"}


def test_prompt_is_rendered_when_it_is_a_chat(chat_tokenizer: Any) -> None:
    (prompt,) = prompts(ALL, chat_tokenizer, {"prompt": [{"role": "user", "content": "hi"}]})
    assert prompt.text == "<user>hi</s><assistant>"
    assert chat_tokenizer.decode(prompt.token_ids) == prompt.text


def test_encode_prompts_keeps_the_first_token_and_never_the_last(tokenizer: Any, bracket_tokenizer: Any) -> None:
    plain = tuple(tokenizer("the film").input_ids)
    assert tuple(bracket_tokenizer("the film").input_ids) == (0, *plain, 1)
    assert encode_prompts(tokenizer, ["the film"]) == [plain]
    assert encode_prompts(bracket_tokenizer, ["the film", "<s>the film"]) == [(0, *plain), (0, *plain)]


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"prompt": " "}, RowError, r"row 1, field 'prompt': is empty"),
        ({"prompt": None}, RowError, r"row 1, field 'prompt': is null"),
        ({"prompt": 5}, RowError, r"row 1, field 'prompt': is int 5"),
        ({"text": "a"}, DataError, r"`prompt` or `query` \(or `text`, with a `cut`\) is needed"),
    ],
)
def test_prompt_that_cannot_be_answered_is_named(tokenizer: Any, row: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        prompts(ALL, tokenizer, row)


def test_cut_needs_texts(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"`text` is needed.*\{text: your_name\}"):
        prompts(CUT, tokenizer, {"prompt": "a"})


def test_cut_gives_the_first_tokens_of_every_length_allowed(tokenizer: Any) -> None:
    cut = prompts(CUT, tokenizer, *({"text": text} for text in TEXTS))
    for text, prompt in zip(TEXTS, cut, strict=True):
        assert prompt.token_ids == tuple(tokenizer(text).input_ids[: len(prompt.token_ids)])
        assert prompt.text == tokenizer.decode(prompt.token_ids)
        assert prompt.columns == {"text": text}
    counts = Counter(len(prompt.token_ids) for prompt in cut)
    assert sorted(counts) == [2, 3, 4, 5, 6, 7, 8]
    assert min(counts.values()) > 20  # 300 / 7 = 43 expected, standard deviation 6


def test_cut_depends_on_seed_and_text_alone(tokenizer: Any) -> None:
    rows = [{"text": text} for text in TEXTS]
    everything = {prompt.columns["text"]: prompt for prompt in prompts(CUT, tokenizer, *rows)}
    for prompt in prompts(CUT, tokenizer, *rows[::-3]):
        assert prompt == everything[prompt.columns["text"]]
    other = prompts(CUT, tokenizer, *rows, seed=1)
    assert sum(prompt != everything[prompt.columns["text"]] for prompt in other) > 200  # 6 of 7 expected: 257


def test_cut_length_is_pinned_so_that_no_release_changes_a_prompt() -> None:
    cut = CutConfig(min_tokens=2, max_tokens=8)
    assert [cut_length(text, cut, seed=0) for text in ("a", "b", "c", "d", "e")] == [6, 7, 4, 3, 5]
    assert cut_length("anything", CutConfig(min_tokens=5, max_tokens=5), seed=3) == 5


def test_cut_puts_the_first_token_on_top(tokenizer: Any, bracket_tokenizer: Any) -> None:
    (plain,) = prompts(CUT, tokenizer, {"text": TEXTS[0]})
    (marked,) = prompts(CUT, bracket_tokenizer, {"text": TEXTS[0]})
    assert (marked.text, marked.token_ids) == (plain.text, (0, *plain.token_ids))


def test_cut_of_a_text_that_spells_the_first_token_has_it_once(bracket_tokenizer: Any) -> None:
    config = ALL.model_copy(update={"cut": CutConfig(min_tokens=4, max_tokens=4)})
    plain, spelled = prompts(config, bracket_tokenizer, {"text": TEXTS[0]}, {"text": f"<s>{TEXTS[0]}"})
    assert plain.token_ids[:1] == (0,)
    assert (spelled.text, spelled.token_ids) == (plain.text, plain.token_ids)
    assert encode_prompts(bracket_tokenizer, [spelled.text]) == [spelled.token_ids]


def test_cut_counts_texts_that_are_too_short(tokenizer: Any) -> None:
    config = ALL.model_copy(update={"cut": CutConfig(min_tokens=3, max_tokens=3)})
    data = load_prompts(config, tokenizer, seed=0, rows=[{"text": text} for text in ("xyz", "xy", "wxyz")])
    assert [prompt.text for prompt in data.train] == ["xyz", "wxy"]
    assert data.report.dropped == {"with fewer tokens than the length drawn (3 to 3)": 1}


@pytest.mark.parametrize(
    "text", ["the" + " " * 300 + "end of it", "x" * 300 + " end", " " * 500 + "the film", "é" * 400]
)
def test_cut_is_exact_when_the_head_is_odd(tokenizer: Any, text: str) -> None:
    config = ALL.model_copy(update={"cut": CutConfig(min_tokens=8, max_tokens=8)})
    (prompt,) = prompts(config, tokenizer, {"text": text})
    assert prompt.token_ids == tuple(tokenizer(text).input_ids[:8])


def test_cut_reads_the_whole_text_when_the_head_may_end_inside_a_token() -> None:
    vocabulary = {"b": 0, " ": 1, "c": 2, "b ": 3, "b c": 4}
    crossing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, [("b", " "), ("b ", "c")])))
    config = ALL.model_copy(update={"cut": CutConfig(min_tokens=1, max_tokens=1)})
    (prompt,) = prompts(config, crossing, {"text": "b " + "c" * 30})
    assert (prompt.text, prompt.token_ids) == ("b c", (4,))


def test_cut_reads_the_head_of_a_long_text_only(tokenizer: Any) -> None:
    class Counting:
        seen = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: Any, **options: Any) -> Any:
            Counting.seen = max(Counting.seen, *map(len, texts))
            return tokenizer(texts, **options)

    prompts(CUT, Counting(), {"text": "the end " * 10_000})
    assert Counting.seen < 8 * 24


def test_filter_measures_the_text_before_it_is_cut(tokenizer: Any) -> None:
    config = CUT.model_copy(update={"filter": FilterConfig(min_characters=20, max_tokens=30)})
    rows = [{"text": text} for text in ("xyz xyz xyz xyz xyz.", "xyz xyz xyz xyz xyz", "xy" * 16)]
    report = load_prompts(config, tokenizer, seed=0, rows=rows).report
    assert (report.train, report.dropped) == (1, {"shorter than 20 characters": 1, "longer than 30 tokens": 1})
