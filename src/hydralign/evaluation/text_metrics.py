"""How varied are the answers? distinct-2 over words, whatever the tokenizer.

distinct-2 (Li et al. 2016) is the share of bigrams that are different from all others: 1 when no bigram comes twice,
near 0 when one phrase is repeated. Words here are runs of letters and digits, contractions kept whole, and every other
mark stands alone; upper and lower case are the same. A script without spaces counts a run of letters as one word.

The share falls with the number of tokens it is taken over, because frequent bigrams come again. So two sides are only
ever compared over equal token counts, and numbers taken over different counts say nothing beside each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from hydralign.errors import ConfigError, DataError

_WORD_OR_MARK = re.compile(r"\w+(?:'\w+)*|[^\w\s]")

_FEWEST_PROMPTS = 8
"""Below this many prompts a block's own distinct-2 is mostly chance."""


def paired_distinct_2(before: Sequence[str], after: Sequence[str]) -> tuple[float, float]:
    """distinct-2 of both sides over the same number of tokens; position i of both is the same prompt.

    Each side's answers are laid end to end in the order of the prompts, and the side with more tokens is cut where the
    other one ends, in the middle of an answer if need be. So longer answers cannot lower the number by length alone;
    the price is that the longer side's last prompts do not count. NaN where a side has no bigram left.
    Raises DataError for unequal numbers of texts.
    """
    _check_pairs(before, after)
    old, new = [_words(text) for text in before], [_words(text) for text in after]
    tokens = min(sum(map(len, old)), sum(map(len, new)))
    return _distinct_2(_first(old, tokens)), _distinct_2(_first(new, tokens))


def distinct_2_blocks(before: Sequence[str], after: Sequence[str], blocks: int = 25) -> tuple[list[float], list[float]]:
    """`paired_distinct_2` of each block of neighbouring prompts, for an interval over blocks by `compare_paired`.

    distinct-2 belongs to many texts and not to one, so blocks and not prompts are the unit: n is their number. Blocks
    differ by at most one prompt; with fewer than 8 prompts a block there are fewer blocks, and a block without a bigram
    on either side is left out. Both lists are empty where fewer than 2 blocks are left. A block has fewer tokens than
    the whole run and so a higher number; compare block means with block means only.
    Raises DataError for unequal numbers of texts; ConfigError for fewer than 2 blocks.
    """
    if blocks < 2:
        raise ConfigError(f"blocks={blocks}: an interval needs at least 2. Use 25, say.")
    _check_pairs(before, after)
    count = min(blocks, len(before) // _FEWEST_PROMPTS)
    if count < 2:
        return [], []
    edges = [len(before) * block // count for block in range(count + 1)]
    pairs = [paired_distinct_2(before[start:stop], after[start:stop]) for start, stop in pairwise(edges)]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    return ([old for old, _ in pairs], [new for _, new in pairs]) if len(pairs) >= 2 else ([], [])


def _check_pairs(before: Sequence[str], after: Sequence[str]) -> None:
    if len(before) != len(after):
        raise DataError(
            f"{len(before)} answers before and {len(after)} after: each prompt needs one on both sides, in the same "
            "order. Answer the same prompts twice."
        )


def _words(text: str) -> list[str]:
    return _WORD_OR_MARK.findall(text.lower().replace("’", "'"))


def _first(texts: list[list[str]], tokens: int) -> list[list[str]]:
    """The texts cut after `tokens` tokens in all."""
    kept: list[list[str]] = []
    for words in texts:
        kept.append(words[:tokens])
        tokens -= len(kept[-1])
    return kept


def _distinct_2(texts: list[list[str]]) -> float:
    """Distinct bigrams ÷ bigrams over all texts together, from 0 to 1; NaN where there is no bigram.

    Bigrams never reach from one text into the next.
    """
    bigrams = [pair for words in texts for pair in pairwise(words)]
    return len(set(bigrams)) / len(bigrams) if bigrams else math.nan
