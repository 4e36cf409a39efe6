"""Text to token ids, by one rule for prompts, filters and cuts.

Of a decoder's prompt, a tokenizer's own template is not used: it may append an end-of-sequence token, after which a
model would have nothing to say. Only a beginning-of-sequence token that the tokenizer normally puts first is kept. An
encoder reads prompts by themselves, with all special tokens that it was trained with; its tokenizer is marked so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydralign.data.detokenise import decode_completion
from hydralign.encoder_input import feeds_encoder
from hydralign.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text between the special tokens that `prompt_frame` puts around it.

    A text that already spells its first token, as rendered chats do, gets no second one.
    """
    first, last = prompt_frame(tokenizer)
    return [(*first, *without_first(ids, first), *last) for ids in encode_plain(tokenizer, texts)]


def without_first(ids: tuple[int, ...], first: tuple[int, ...]) -> tuple[int, ...]:
    """The ids of a text that was encoded alone, without the tokenizer's `first` token where the text spells it."""
    return ids[len(first) :] if ids[: len(first)] == first else ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text with all special tokens that the tokenizer puts around it, for models that score texts.

    A text that already spells the first of them, as rendered chats do, gets no second one.
    """
    ids = list(tokenizer(text, return_attention_mask=False, verbose=False).input_ids)
    return ids[1:] if starts_twice(tokenizer, ids) else ids


def starts_twice(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether two tokens that begin a text stand first: the tokenizer's own, and the one that the text spells."""
    return len(ids) > 1 and ids[0] == ids[1] and ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text and of nothing else."""
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
    return [tuple(ids) for ids in rows]


def token_ends(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(token ids of each text and of nothing else, the character of the text behind each token).

    Raises TokenizerError for a tokenizer that does not know where its tokens stand in a text.
    """
    if not texts:
        return []
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in a text: a text could not be parted "
            "into an opening and its rest. Use the tokenizer's fast version, or give prompt and completion yourself."
        )
    read = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    ends = ([end for _, end in offsets] for offsets in read["offset_mapping"])
    return [(tuple(ids), tuple(row)) for ids, row in zip(read["input_ids"], ends, strict=True)]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[tuple[int, ...]]:
    """Token ids of each completion as it continues its prompt, so that decoding both gives both texts back.

    A tokenizer that puts a space before every text it encodes (Llama 2, Mistral, Phi-3) would put one between prompt
    and completion: there the completion's ids are those that it adds to its prompt, or else to a line break. Where
    either runs into the completion in one token, it is encoded alone, as it is by every other tokenizer.
    """
    alone = encode_plain(tokenizer, completions)
    if not completions or feeds_encoder(tokenizer) or not _puts_space_first(tokenizer):
        return alone
    ahead = encode_plain(tokenizer, prompts)
    both = encode_plain(tokenizer, [prompt + text for prompt, text in zip(prompts, completions, strict=True)])
    (line,) = encode_plain(tokenizer, ["\n"])
    after_line = encode_plain(tokenizer, [f"\n{text}" for text in completions])
    encoded = []
    for row, (before, whole) in enumerate(zip(ahead, both, strict=True)):
        if whole[: len(before)] == before:
            encoded.append(whole[len(before) :])
        elif line and after_line[row][: len(line)] == line:
            encoded.append(after_line[row][len(line) :])
        else:
            encoded.append(alone[row])
    return encoded


def _puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text that is encoded alone and put behind another has a space that neither of them had."""
    (ids,) = encode_plain(tokenizer, ["a"])
    return bool(ids) and decode_completion(tokenizer, ids, ids) == " a"


def prompt_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that stand before and after every prompt: for a decoder the tokenizer's beginning-of-sequence token, if
    it puts one first, and nothing; for an encoder all that it puts there.
    """
    usual, (plain,) = tuple(tokenizer("a").input_ids), encode_plain(tokenizer, ["a"])
    if not feeds_encoder(tokenizer):
        return (usual[:1] if usual[:1] == (tokenizer.bos_token_id,) else ()), ()
    start = next(place for place in range(len(usual)) if usual[place : place + len(plain)] == plain)
    return usual[:start], usual[start + len(plain) :]
