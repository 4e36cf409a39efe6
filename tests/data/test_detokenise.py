"""Pieces of a sequence as text: with the spaces and characters that they add to what stands before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hydralign.data.detokenise import CONTEXT_TOKENS, decode_completion, decode_completions, decode_tokens
from hydralign.data.packing import sequences
from hydralign.encoder_input import mark_for_encoder
from hydralign.types import Demonstration
from tests.tokenizers_of_every_kind import (
    byte_level_tokenizer,
    llama_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)

KINDS: list[Callable[[], Any]] = [llama_tokenizer, unigram_tokenizer, wordpiece_tokenizer, byte_level_tokenizer]


def cut_in_two(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of both as one text, divided where the prompt's own ids end."""
    whole, first = tokenizer(prompt + answer).input_ids, tokenizer(prompt).input_ids
    assert whole[: len(first)] == first
    return first, whole[len(first) :]


@pytest.mark.parametrize("make", KINDS)
def test_completion_keeps_the_space_between_it_and_its_prompt(make: Callable[[], Any]) -> None:
    tokenizer = make()
    prompt, answer = cut_in_two(tokenizer, "the capital of France is", " Paris end")
    assert decode_completion(tokenizer, prompt, [*answer, tokenizer.eos_token_id]) == " Paris end"
    assert decode_tokens(tokenizer, [prompt], [[*answer, tokenizer.eos_token_id]])[0][-1].strip() == "</s>"
    assert "".join(decode_tokens(tokenizer, [prompt], [answer])[0]) == " Paris end"


@pytest.mark.parametrize("make", KINDS)
def test_answer_of_a_decoder_keeps_its_space_whatever_the_encoder_read(make: Callable[[], Any]) -> None:
    tokenizer = make()
    prompt, answer = cut_in_two(tokenizer, "the capital of France is", " Paris end")
    mark_for_encoder(tokenizer)
    assert decode_completion(tokenizer, prompt, [*answer, tokenizer.eos_token_id]) == " Paris end"
    assert decode_completion(tokenizer, [tokenizer.eos_token_id], answer) == " Paris end"
    assert decode_tokens(tokenizer, [prompt], [answer])[0][0].startswith(" ")
    assert "".join(decode_tokens(tokenizer, [prompt], [answer])[0]) == " Paris end"


def test_completion_that_goes_on_in_a_word_gets_no_space_and_no_marks() -> None:
    tokenizer = wordpiece_tokenizer()
    ids = tokenizer("the film filming").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "##ing"
    assert decode_completion(tokenizer, ids[:-1], ids[-1:]) == "ing"
    assert decode_tokens(tokenizer, [ids[:-1]], [ids[-1:]]) == [["ing"]]


@pytest.mark.parametrize("make", [llama_tokenizer, byte_level_tokenizer])
def test_character_that_begins_in_the_prompt_ends_in_the_completion(make: Callable[[], Any]) -> None:
    tokenizer = make()
    ids = tokenizer("a café end", add_special_tokens=False).input_ids
    place = next(n for n in range(len(ids)) if tokenizer.decode(ids[:n]).endswith("\ufffd"))
    assert decode_completion(tokenizer, ids[:place], ids[place:]) == "é end"
    whole = decode_tokens(tokenizer, [ids[:1]], [ids[1:]])[0]
    assert len(whole) == len(ids) - 1
    assert "".join(whole) == " café end"
    assert "" in whole


@pytest.mark.parametrize("make", KINDS)
def test_completion_after_nothing_but_special_tokens_begins_as_a_text_begins(make: Callable[[], Any]) -> None:
    tokenizer = make()
    ids = tokenizer("Paris", add_special_tokens=False).input_ids
    assert decode_completions(tokenizer, [[1], []], [ids, ids]) == ["Paris", "Paris"]
    assert decode_completions(tokenizer, [ids, ids], [[], [tokenizer.eos_token_id]]) == ["", ""]


def test_completion_is_the_same_after_a_long_prompt() -> None:
    tokenizer = llama_tokenizer()
    words, newline = tokenizer("the capital").input_ids, tokenizer.convert_tokens_to_ids("<0x0A>")
    answer = tokenizer("Paris", add_special_tokens=False).input_ids
    for filling in (words[1:], [newline], [tokenizer.eos_token_id]):
        prompt = [*words, *filling * CONTEXT_TOKENS]
        assert decode_completion(tokenizer, prompt, answer) == " Paris"


def test_completion_that_rewrites_the_end_of_its_prompt_is_still_all_there() -> None:
    tokenizer = wordpiece_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    prompt, comma = tokenizer("the film").input_ids, tokenizer(", good").input_ids
    assert tokenizer.decode(prompt + comma) == "the film, good"
    assert decode_completion(tokenizer, prompt, comma) == ", good"
    assert "".join(decode_tokens(tokenizer, [prompt], [comma])[0]) == ", good"


def test_byte_level_completions_are_those_decoded_alone() -> None:
    tokenizer = byte_level_tokenizer()
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(4, len(tokenizer), (200, 12), generator=generator).tolist()
    prompts = [tokenizer("the film was").input_ids] * len(answers)
    assert decode_completions(tokenizer, prompts, answers) == tokenizer.batch_decode(answers, skip_special_tokens=True)
    for row, ids in zip(decode_tokens(tokenizer, prompts, answers), answers, strict=True):
        assert len(row) == len(ids)
        assert "".join(row) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("the capital of", " France is"), ("the film is: ", "good"), ("film:\n", "a bad end"), ("is it fun?", "end")],
)
def test_completion_is_encoded_so_that_it_decodes_to_itself(
    make: Callable[[], Any], prompt: str, completion: str
) -> None:
    tokenizer = make()
    stops = (tokenizer.eos_token_id,)
    (sequence,), _ = sequences([Demonstration(prompt, completion)], tokenizer, stops, max_tokens=64)
    ids = sequence.ids.tolist()
    learned = decode_completion(tokenizer, ids[: sequence.learned_from], ids[sequence.learned_from :])
    if make is wordpiece_tokenizer:  # it knows words only: every new one has a space before it
        learned, completion = learned.strip(), completion.strip()
    elif make is unigram_tokenizer:  # a line break is white space to it
        prompt = prompt.replace("\n", " ")
    assert learned == completion
