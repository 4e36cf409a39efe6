"""Texts parted into an opening, which is the prompt, and the rest, which is learned.

The opening has as many tokens as the prompt that `data.prompts` with the same `cut` and seed makes of the text. Opening
and rest together are the text, character by character: where a cut would part a character, the opening has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hydralign.config.data import CutConfig
from hydralign.data.candidates import Candidate, LeftOut, Outcome
from hydralign.data.prompts import cut_length, too_short_to_cut
from hydralign.data.tokens import prompt_frame, token_ends
from hydralign.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_to_openings(
    candidates: Sequence[Candidate[Demonstration]], tokenizer: PreTrainedTokenizerBase, cut: CutConfig, *, seed: int
) -> list[Outcome[Demonstration]]:
    """Each text as opening and rest; its split goes by the whole text. Raises TokenizerError, see `token_ends`."""
    texts = [one.record.completion for one in candidates]
    first, _ = prompt_frame(tokenizer)
    outcomes: list[Outcome[Demonstration]] = []
    for one, text, (ids, ends) in zip(candidates, texts, token_ends(tokenizer, texts), strict=True):
        own = len(first) if ids[: len(first)] == first else 0
        count = own + cut_length(text, cut, seed=seed)
        if len(ids) < count:
            outcomes.append(too_short_to_cut(cut))
        elif not text[ends[count - 1] :].strip():
            outcomes.append(LeftOut("with nothing behind the opening"))
        else:
            end = ends[count - 1]
            record = replace(one.record, prompt=text[:end], completion=text[end:])
            outcomes.append(replace(one, record=record, key=text))
    return outcomes
