"""From prompts to experience: sample, score, and read values and reference.

This is PPO's first stage. It learns nothing and estimates nothing; it drives any policy form, any reward and any
sampler through their seams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hydralign.config.data import RESERVED_COLUMNS
from hydralign.data.detokenise import decode_tokens
from hydralign.errors import NonFiniteError, RewardError
from hydralign.generation.sampler import Sampler, encoded_prompts, sample
from hydralign.micro_batches import MicroBatcher, map_micro_batches
from hydralign.models.backbones.backbone import Trunk
from hydralign.models.policy import Policy, Reference
from hydralign.rewards.combine import RewardTerm, as_terms, score_rollout
from hydralign.types import Experience, PolicyOutput, Prompt, Rollout, SamplingParams, Scores, TokenBatch, TrunkStates


def collect(
    policy: Policy,
    prompts: Sequence[Prompt | str],
    reward: Callable[..., Any] | RewardTerm | Sequence[RewardTerm | Callable[..., Any]],
    params: SamplingParams | None = None,
    *,
    micro_batch_size: int | MicroBatcher = 16,
    decode_batch_size: MicroBatcher | None = None,
    sampler: Sampler = sample,
    reference: Reference | None = None,
) -> Experience:
    """Answer `prompts`, score the answers, and read the reference; `reward` is a function or weighted terms.

    Prompts may be plain texts; `params` None is `SamplingParams()`; `reference` takes the place of the policy's own.
    In fp32 the old log-probabilities and values are the sampler's own, but for values of a branch that sampling does
    not run. In bf16, where decoding with a cache and a full forward pass differ, both are read again by the path that
    the update uses. A shared trunk is run for rows that the sampler did not harvest. Micro-batch and decode batch are
    halved whenever memory runs out; a `MicroBatcher` of either remembers it for the next call.
    """
    prompts, terms, params = encoded_prompts(policy, prompts), as_terms(reward), params or SamplingParams()
    decoding, reading = (
        decode_batch_size or MicroBatcher(params.decode_batch_size, name="decode_batch_size"),
        MicroBatcher.of(micro_batch_size),
    )
    before = policy.trunk and policy.trunk.use
    rollout = decoding.run(
        lambda rows: sampler(policy, prompts, replace(params, decode_batch_size=rows)),
        total=len(prompts),
        undo=keep_trunk_count(policy),
    )
    if policy.trunk is not None and rollout.rows.trunk is None:
        states = trunk_states(policy, policy.trunk, rollout.rows, reading)
        rollout = replace(rollout, rows=rollout.rows.with_trunk(states))
    scores = score(rollout, terms, policy.tokenizer)
    old_logprobs_BR, ref_logprobs_BR, values_BR = _read(policy, reference, rollout, reading)
    named = {"old/logprobs": old_logprobs_BR, "reference/logprobs": ref_logprobs_BR, "old/values": values_BR}
    require_finite_numbers({name: tensor for name, tensor in named.items() if tensor is not None})
    used = policy.trunk.use.since(before) if policy.trunk and before else None
    return Experience(
        rollout, scores, old_logprobs_BR, ref_logprobs_BR, values_BR, trunk_use=used, truncated=params.truncated
    )


def keep_trunk_count(policy: Policy) -> Callable[[], None]:
    """Sets the trunk's count of positions back to what it is now; what a failed attempt read is in no rollout."""
    trunk = policy.trunk
    return (lambda: None) if trunk is None else partial(setattr, trunk, "use", trunk.use)


@torch.no_grad()
def _read(
    policy: Policy, reference: Reference | None, rollout: Rollout, size: MicroBatcher
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(old_logprobs_BR, ref_logprobs_BR, values_BR), all from the same micro-batches."""
    read_reference = policy.reference_logprobs if reference is None else reference.logprobs
    sampled_values_BR = rollout.values_BR if policy.samples_values else None
    wants_values = policy.critic is not None and sampled_values_BR is None

    def read(few: TokenBatch) -> tuple[Tensor | None, ...]:
        if policy.precision == "fp32":
            return None, read_reference(few), policy.read_values(few) if wants_values else None
        old = policy.evaluate(few)
        return old.logprobs_BR, read_reference(few), old.values_BR

    old_BR, ref_BR, values_BR = map_rows(read, rollout.rows, size)
    if old_BR is not None:
        return old_BR, ref_BR, values_BR
    return rollout.old_logprobs_BR, ref_BR, values_BR if wants_values else sampled_values_BR


def require_finite_numbers(named: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError naming the first tensor that holds NaN or infinity."""
    for name, tensor in named.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                name,
                f"{name} holds NaN or infinity on sampled answers: nothing can be learnt from them. The weights or "
                "activations have overflowed: lower the learning rate, or use precision fp32.",
            )


def score(rollout: Rollout, reward: Callable[..., Any] | Sequence[RewardTerm], tokenizer: Any) -> Scores:
    """Scores of one rollout. Rewards see text, the data set's columns, `finished` and `completion_tokens`."""
    scores = score_rollout(
        as_terms(reward),
        prompts=[prompt.text for prompt in rollout.prompts],
        completions=list(rollout.completions),
        columns=shared_columns(rollout.prompts),
        finished=rollout.finished_B.tolist(),
        completion_tokens=completion_tokens(rollout.rows, tokenizer),
    )
    return replace(scores, scores_B=scores.scores_B.to(rollout.rows.device))


def shared_columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The prompts' data columns as lists, None where a row lacks one."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    taken = RESERVED_COLUMNS & names.keys()
    if taken:
        raise RewardError(
            f"Prompts have a column {sorted(taken)[0]!r}: rewards get an argument of that name from the sampler, so "
            "one of the two would be lost. Give the column another name in the prompts' `columns`."
        )
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def completion_tokens(rows: TokenBatch, tokenizer: Any) -> list[list[str]]:
    """The text of every real response token, end-of-sequence tokens included, so that lists match `_BR` columns."""
    prompts, answers = (
        [ids[:length] for ids, length in zip(tokens.tolist(), lengths_B.tolist(), strict=True)]
        for tokens, lengths_B in (
            (rows.prompt_BQ, rows.prompt_lengths_B),
            (rows.response_BR, rows.response_lengths_B),
        )
    )
    return decode_tokens(tokenizer, prompts, answers)


def map_rows(
    read: Callable[[TokenBatch], Sequence[Tensor | None]], rows: TokenBatch, size: int | MicroBatcher
) -> list[Any]:
    """The `_BR` tensors that `read` gives, or None in their places, read from a few rows of like length at a time."""
    out: list[Any] = []
    for few, parts in map_micro_batches(lambda few: read(rows.select(torch.tensor(few))), by_length(rows), size):
        out = out or [None if x is None else x.new_zeros(len(rows), rows.width) for x in parts]
        for whole_BR, part_BR in zip(out, parts, strict=True):
            if part_BR is not None:
                whole_BR[few, : part_BR.shape[1]] = part_BR
    return out


def by_length(rows: TokenBatch) -> list[int]:
    """Row numbers by rising length."""
    return rows.lengths_B.argsort(stable=True).tolist()


def trunk_states(policy: Policy, trunk: Trunk, rows: TokenBatch, size: int | MicroBatcher) -> TrunkStates:
    """The trunk's states of any number of rows, each crossing the trunk once."""
    whole = trunk.collector(len(rows))

    def read(few: list[int]) -> None:
        index_B = torch.tensor(few)
        whole.add(index_B, trunk.states(rows.select(index_B)))

    map_micro_batches(read, by_length(rows), size, undo=keep_trunk_count(policy))
    return whole.states()


@torch.no_grad()
def evaluate_rows(policy: Policy, rows: TokenBatch, size: int | MicroBatcher) -> PolicyOutput:
    """`policy.evaluate` on any number of rows, without gradient, by the very path that updates use."""
    return PolicyOutput(*map_rows(policy.evaluate, rows, size))


def reference_rows(policy: Policy, rows: TokenBatch, size: int | MicroBatcher) -> Tensor:
    """ref_logprobs_BR of any number of rows."""
    return map_rows(lambda few: [policy.reference_logprobs(few)], rows, size)[0]
