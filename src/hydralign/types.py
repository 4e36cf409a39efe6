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
from typing import Any, NamedTuple

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
    decode_rows: int = 64

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
            "decode_rows": (self.decode_rows >= 1, "1 or more"),
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
    """Where the real response tokens of some rows stand, row by row; on the rows' device."""

    row_N: Tensor
    position_N: Tensor
    """Counted from the first response token: the column of `_BR` tensors."""
    column_N: Tensor
    """Counted from the first prompt token: the column of `_BT` tensors."""


@dataclass(frozen=True)
class TokenBatch:
    """Token rows as a policy reads them: prompt, then response, then padding, each row from column 0.

    A causal model needs no attention mask for such rows: real positions never look right.
    `temperature` and `min_new_tokens` shape every log-probability of these rows in the same way: policy, old
    and reference. Lengths lie on the CPU wherever the tokens lie, so that no shape waits for a device.
    `trunk_BTD` may carry the states that a frozen trunk gave these tokens (right-padded like them); it may lie on
    the CPU to spare the device's memory.
    """

    tokens_BT: Tensor
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    temperature: float = 1.0
    min_new_tokens: int = 0
    trunk_BTD: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]

    @property
    def lengths_B(self) -> Tensor:
        """Real tokens of each row, prompt and response."""
        return self.prompt_lengths_B + self.response_lengths_B

    @property
    def width(self) -> int:
        """R: response columns of every `_BR` tensor of these rows (the longest response)."""
        return int(self.response_lengths_B.max()) if len(self) else 0

    @cached_property
    def mask_BR(self) -> Tensor:
        """True for real response tokens, the end-of-sequence token included."""
        return self._cpu_mask_BR.to(self.tokens_BT.device, non_blocking=True)

    @cached_property
    def response_index(self) -> ResponseIndex:
        """Where the real response tokens stand."""
        row_N, position_N = self._cpu_mask_BR.nonzero(as_tuple=True)
        both = torch.stack([row_N, position_N, self.prompt_lengths_B[row_N] + position_N])
        return ResponseIndex(*both.to(self.tokens_BT.device, non_blocking=True))

    @property
    def _cpu_mask_BR(self) -> Tensor:
        return torch.arange(self.width) < self.response_lengths_B[:, None]

    def with_trunk(self, trunk_BTD: Tensor | None) -> TokenBatch:
        """The same rows with these trunk states."""
        return replace(self, trunk_BTD=trunk_BTD)

    @property
    def response_BR(self) -> Tensor:
        """Token ids of the responses; entries outside `mask_BR` mean nothing."""
        columns_BR = self.prompt_lengths_B[:, None] + torch.arange(self.width)
        inside_BR = columns_BR.clamp(max=self.tokens_BT.shape[1] - 1)
        return self.tokens_BT.gather(1, inside_BR.to(self.tokens_BT.device))

    def select(self, index_B: Tensor) -> TokenBatch:
        """These rows only, in this order, with the padding trimmed to the longest of them. `index_B` lies on the CPU.

        Trunk states come to the tokens' device.
        """
        prompt, response = self.prompt_lengths_B[index_B], self.response_lengths_B[index_B]
        longest = int((prompt + response).max()) if len(index_B) else 0
        device = self.tokens_BT.device
        trunk = None if self.trunk_BTD is None else self.trunk_BTD[index_B, :longest].to(device)
        return replace(
            self,
            tokens_BT=self.tokens_BT[index_B, :longest],
            prompt_lengths_B=prompt,
            response_lengths_B=response,
            trunk_BTD=trunk,
        )


class PolicyOutput(NamedTuple):
    """What a policy says of given rows; zero outside the rows' mask."""

    logprobs_BR: Tensor
    """Log-probability of each response token, fp32."""
    values_BR: Tensor
    """Predicted return before each response token, fp32."""
    entropy_BR: Tensor
    """Entropy of the distribution that each response token was drawn from, in nats."""


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
    """What the sampler returns. Log-probabilities and values are those of the sampling pass itself."""

    prompts: tuple[Prompt, ...]
    rows: TokenBatch
    old_logprobs_BR: Tensor
    values_BR: Tensor
    finished_B: Tensor
    completions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Scores:
    """Rewards of one rollout, before the KL leash.

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
    """A rollout with everything that PPO learns from: rewards, values and reference log-probabilities."""

    rollout: Rollout
    scores: Scores
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    values_BR: Tensor
    trunk_use: TrunkUse | None = None
    """What collecting this took of a frozen trunk, where there is one."""
    truncated: bool = False
    """Whether top-k or top-p cut the distribution that the answers were drawn from."""

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass(frozen=True)
class Advantages:
    """What PPO computes from an experience before it updates: all `_BR`, zero outside the mask."""

    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    stats: Mapping[str, float] = field(default_factory=dict)
