"""The nouns that every layer shares, and the legend of tensor shapes.

Shape suffixes: ``B`` rows, ``P`` prompts, ``G`` samples per prompt (``B = P·G``), ``Q`` prompt tokens,
``R`` response tokens, ``T = Q + R``, ``V`` vocabulary, ``D`` width, ``N`` real response tokens of a
batch, ``C`` columns.

Masks are bool and **True = counts**. Column ``t`` of any ``_BR`` tensor belongs to response token ``t``;
``values_BR[:, t]`` is the value *before* that token. Masks come from lengths, never from comparing ids with
a pad id, so a tokenizer whose pad is its end-of-sequence token loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hydralign.errors import ConfigError


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, its token ids, and the other columns of its row (seen by rewards).

    Without token ids it is encoded by the tokenizer of the policy that answers it.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: Any = self.token_ids
        if not isinstance(given, tuple):
            object.__setattr__(self, "token_ids", tuple(map(int, given)))


@dataclass(frozen=True)
class Demonstration:
    """A text to imitate. The loss covers `completion`; `prompt` is context and may be empty."""

    prompt: str
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which somebody preferred `chosen`."""

    prompt: str
    chosen: str
    rejected: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledText:
    """A text and the name of its class."""

    text: str
    label: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one iteration.

    `seed`, `iteration`, the row's global number and the position key one uniform number per token. So in fp32 on CPU
    equal plans give equal tokens on every batch split and process count; where kernels round differently by batch
    shape (bf16, GPU) a token near the edge of its interval can change.
    `first_row` is the global number of the first row handed to the sampler.
    `lengths` = (low, high), both inclusive, draws each row's own maximum; it overrides `max_new_tokens`.
    `top_k = 0` and `top_p = 1` switch truncation off.
    """

    temperature: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int = 32
    lengths: tuple[int, int] | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    iteration: int = 0
    first_row: int = 0
    decode_batch_size: int = 64

    def __post_init__(self) -> None:
        lengths = self.lengths
        if isinstance(lengths, Sequence) and len(lengths) == 2:
            object.__setattr__(self, "lengths", tuple(lengths))
            lengths = self.lengths
        allowed = {
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "min_new_tokens": (self.min_new_tokens >= 0, "0 or more"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "lengths": (
                lengths is None or (isinstance(lengths, tuple) and 1 <= lengths[0] <= lengths[1]),
                "(low, high)",
            ),
            "top_k": (self.top_k >= 0, "0, which keeps all tokens, or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1"),
            "decode_batch_size": (self.decode_batch_size >= 1, "1 or more"),
        }
        for name, (right, wanted) in allowed.items():
            if not right:
                raise ConfigError(f"{name}={getattr(self, name)!r}: no answer can be sampled so. Give {wanted}.")

    @property
    def longest(self) -> int:
        """The largest number of new tokens that any row can get."""
        return self.lengths[1] if self.lengths else self.max_new_tokens

    @property
    def truncated(self) -> bool:
        """Whether top-k or top-p cut the distribution, so that samples are off-policy."""
        return self.top_k > 0 or self.top_p < 1.0

    def at(self, iteration: int, first_row: int = 0) -> SamplingParams:
        """The same plan with the generator keyed to another iteration."""
        return replace(self, iteration=iteration, first_row=first_row)


class ResponseIndex(NamedTuple):
    """Where the real response tokens of a batch stand, row by row; on the batch's device."""

    row_N: Tensor
    position_N: Tensor
    """Counted from the first response token: the column of `_BR` tensors."""


class TrunkStates(Protocol):
    """What a frozen trunk gave the tokens of a batch. Only the backbone that made it knows what is inside."""

    def select(self, index_B: Tensor, device: torch.device) -> TrunkStates:
        """Of these rows only, on this device. `index_B` lies on the CPU."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and responses as token ids, each padded on the right. How a network reads them is up to its backbone.

    `temperature`, and `stop_ids`, which are impossible among the first `min_new_tokens` tokens, shape every
    log-probability of the batch in the same way: policy, old and reference. Lengths lie on the CPU wherever the tokens
    lie, so that no shape waits for a device; they alone say what is real, so the ids that pad mean nothing. `trunk` may
    carry the states that a frozen trunk gave these tokens; they may lie on the CPU to spare the device's memory.
    """

    prompt_BQ: Tensor
    response_BR: Tensor
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    temperature: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    trunk: TrunkStates | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        pad_id: int = 0,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        min_new_tokens: int = 0,
        stop_ids: tuple[int, ...] = (),
    ) -> TokenBatch:
        """A batch of these token ids, one prompt and one response a row."""
        prompt_BQ, response_BR = (_padded(rows, pad_id).to(device) for rows in (prompts, responses))
        return cls(
            prompt_BQ,
            response_BR,
            prompt_lengths_B=torch.tensor([len(ids) for ids in prompts], dtype=torch.long),
            response_lengths_B=torch.tensor([len(ids) for ids in responses], dtype=torch.long),
            temperature=temperature,
            min_new_tokens=min_new_tokens,
            stop_ids=stop_ids,
        )

    def __len__(self) -> int:
        return self.prompt_BQ.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tokens lie."""
        return self.prompt_BQ.device

    @property
    def lengths_B(self) -> Tensor:
        """Real tokens of each row, prompt and response."""
        return self.prompt_lengths_B + self.response_lengths_B

    @property
    def width(self) -> int:
        """R: columns of every `_BR` tensor of this batch (the longest response)."""
        return int(self.response_lengths_B.max()) if len(self) else 0

    @cached_property
    def mask_BR(self) -> Tensor:
        """True for real response tokens, the end-of-sequence token included."""
        return self._cpu_mask_BR.to(self.device, non_blocking=True)

    @cached_property
    def response_index(self) -> ResponseIndex:
        """Where the real response tokens stand."""
        both = torch.stack(self._cpu_mask_BR.nonzero(as_tuple=True))
        return ResponseIndex(*both.to(self.device, non_blocking=True))

    @property
    def _cpu_mask_BR(self) -> Tensor:
        return torch.arange(self.width) < self.response_lengths_B[:, None]

    def with_trunk(self, trunk: TrunkStates | None) -> TokenBatch:
        """The same batch with these trunk states."""
        return replace(self, trunk=trunk)

    def select(self, index_B: Tensor) -> TokenBatch:
        """These rows only, in this order, with the padding trimmed to the longest of them. `index_B` lies on the CPU.

        Trunk states come to the tokens' device.
        """
        prompt, response = self.prompt_lengths_B[index_B], self.response_lengths_B[index_B]
        longest_prompt, longest_response = (int(x.max()) if len(index_B) else 0 for x in (prompt, response))
        return replace(
            self,
            prompt_BQ=self.prompt_BQ[index_B, :longest_prompt],
            response_BR=self.response_BR[index_B, :longest_response],
            prompt_lengths_B=prompt,
            response_lengths_B=response,
            trunk=None if self.trunk is None else self.trunk.select(index_B, self.device),
        )

    def scatter(self, x_N: Tensor) -> Tensor:
        """`x_BR`: numbers of the real response tokens, row by row, in their columns; zero elsewhere."""
        out_BR = torch.zeros(len(self), self.width, dtype=x_N.dtype, device=x_N.device)
        return out_BR.index_put(tuple(self.response_index), x_N)


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), pad_id, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return tokens


class PolicyOutput(NamedTuple):
    """What a policy says of a batch, all `_BR`, fp32, zero outside the batch's mask."""

    logprobs_BR: Tensor
    """Log-probability of each response token."""
    entropy_BR: Tensor
    """Entropy of the distribution that each response token was drawn from, in nats."""
    values_BR: Tensor | None = None
    """Predicted return before each response token; None of a policy without a critic."""


class TrunkUse(NamedTuple):
    """How many positions crossed a frozen trunk."""

    real: int = 0
    """Positions that hold a token of a prompt or a response."""
    pad: int = 0
    """Positions that only fill: left of short prompts, and of rows that had ended."""

    def since(self, before: TrunkUse) -> TrunkUse:
        """What was added to an earlier count."""
        return TrunkUse(self.real - before.real, self.pad - before.pad)


@dataclass(frozen=True)
class Rollout:
    """What the sampler returns. Log-probabilities and values are those of the sampling pass itself; values are None
    where that gives none.
    """

    prompts: tuple[Prompt, ...]
    rows: TokenBatch
    old_logprobs_BR: Tensor
    values_BR: Tensor | None
    finished_B: Tensor
    completions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Scores:
    """Rewards of one rollout, before the KL penalty.

    `scores_B` is the weighted sum per answer, to be put on its last real token. `token_scores` holds a list per
    row when a reward spoke per token, else None. `terms` keeps each reward's own unweighted number per row,
    None where it did not apply. `cut` holds, of each reward that reads a limited number of tokens, how many texts were
    too long for it and how many it read; reference answers that it scored count too.
    """

    scores_B: Tensor
    token_scores: tuple[tuple[float, ...] | None, ...] | None = None
    terms: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def totals_B(self) -> Tensor:
        """The whole score of each answer: `scores_B` and the sum of its scores per token."""
        if self.token_scores is None:
            return self.scores_B
        dense = [math.fsum(row) if row else 0.0 for row in self.token_scores]
        return self.scores_B + torch.tensor(dense, dtype=self.scores_B.dtype, device=self.scores_B.device)


@dataclass(frozen=True)
class Experience:
    """A rollout with everything that is learned from: scores, reference log-probabilities, and values of a critic."""

    rollout: Rollout
    scores: Scores
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor | None = None
    """None of a policy without a critic."""
    trunk_use: TrunkUse | None = None
    """What collecting this took of a frozen trunk, where there is one."""
    truncated: bool = False
    """Whether top-k or top-p cut the distribution that the answers were drawn from."""

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass(frozen=True)
class Advantages:
    """What is computed from an experience before the policy is updated: all `_BR`, zero outside the mask."""

    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor | None = None
    """What values are to predict; None where no critic is trained."""
    stats: Mapping[str, float] = field(default_factory=dict)
