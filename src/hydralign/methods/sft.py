"""Supervised fine-tuning: next-token prediction on demonstrations (Stiennon et al. 2020, section 3.4, first step).

The loss is the mean over all learned tokens of an optimizer step, whatever their rows, micro-batches or processes;
prompts and padding are read and not learned. Several demonstrations share a row without seeing each other: positions
begin anew with each, and attention stays inside (checked on the model itself before the first step).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hydralign.config.sft import SFTConfig
from hydralign.data.packing import TokenSequence, packed
from hydralign.data.stream import Stream
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.encoder_input import feeds_encoder
from hydralign.errors import DataError, NonFiniteError
from hydralign.methods.packing_check import require_apart
from hydralign.methods.supervised import SupervisedTask, learn, steps_of
from hydralign.micro_batches import longest_first, map_micro_batches
from hydralign.models.policy import Policy
from hydralign.tracking import Trackers
from hydralign.types import TokenBatch

Row = Sequence[TokenSequence]

LONGEST_ROW = 1024
"""Tokens of a row where sft.max_tokens does not say otherwise and the context holds more."""


@dataclass(frozen=True)
class SFTParts:
    """What a run of supervised fine-tuning is made of."""

    policy: Policy
    train: Sequence[TokenSequence]
    held_out: Sequence[TokenSequence]
    folder: Path
    records: Trackers
    processes: Distributed = SINGLE_PROCESS


def train(config: SFTConfig, parts: SFTParts, *, seed: int = 0) -> None:
    """Learn the training sequences, from the newest checkpoint in `parts.folder` or from the start.

    Raises ModelError when the model lets packed demonstrations see each other, and as `supervised.learn` does.
    """
    policy = parts.policy
    if packs(config, policy):
        require_apart(policy)
        rows = packed(parts.train, max_tokens_of(config, policy))
    else:
        rows = tuple((sequence,) for sequence in parts.train)
    stream = Stream(rows, seed)

    def measure() -> Mapping[str, float]:
        nll_N, tokens_N = held_out_losses(policy, parts.held_out, config.batch.micro_batch_size, parts.processes)
        loss = float(nll_N.sum() / tokens_N.sum())
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}

    task: SupervisedTask[Row] = SupervisedTask(
        name="sft",
        trained=policy.trained(),
        steps=steps_of(config, len(rows)),
        batch=lambda step: stream.batch(step, config.batch.rows),
        count=lambda batch: sum(sequence.learned for row in batch for sequence in row),
        loss=partial(language_loss, policy),
        measure=measure,
    )
    learn(task, config, parts.folder, parts.records, processes=parts.processes)


def packs(config: SFTConfig, policy: Policy) -> bool:
    """Whether several sequences share a row; an encoder–decoder reads each by itself, whatever the settings say."""
    return config.packing and not feeds_encoder(policy.tokenizer)


def max_tokens_of(config: SFTConfig, policy: Policy) -> int:
    """The longest row in tokens. Raises DataError for more than the model's context."""
    longest = config.max_tokens or min(policy.context, LONGEST_ROW)
    if longest > policy.context:
        raise DataError(
            f"sft.max_tokens={longest} is above the {policy.context} positions of the model"
            f"{policy.context_note or ': it could not read such rows'}. Set sft.max_tokens to {policy.context} or "
            "less."
        )
    return longest


def language_loss(policy: Policy, rows: Sequence[Row], count: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ −log p in nats over the learned tokens of these rows ÷ `count`, with gradient; and no further numbers."""
    nll_N, _ = token_losses(policy, rows)
    return nll_N.sum() / max(count, 1.0), {}


def token_losses(policy: Policy, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """(nll_N, row_N): −log p in nats of every learned token, row by row, and the row that it stands in."""
    if feeds_encoder(policy.tokenizer):
        split = [(row[0].ids[: row[0].learned_from], row[0].ids[row[0].learned_from :]) for row in rows]
        batch = TokenBatch.of(*zip(*split, strict=True), pad_id=policy.tokenizer.pad_token_id, device=policy.device)
        return -policy.branch.logprobs(batch)[batch.mask_BR], batch.response_index.row_N
    tokens_BT, positions_BT, learned_BT = _tensors(rows, policy.tokenizer.pad_token_id, policy.device)
    packed = any(len(row) > 1 for row in rows)
    logprobs_N = policy.branch.packed_logprobs(tokens_BT, positions_BT if packed else None, learned_BT)
    row_N = torch.arange(len(rows), device=policy.device)[:, None].expand_as(learned_BT)[learned_BT]
    return -logprobs_N, row_N


def _tensors(rows: Sequence[Row], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens_BT, positions_BT, learned_BT); padding counts positions of its own and is never learned."""
    width = max(sum(len(sequence.ids) for sequence in row) for row in rows)
    tokens_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions_BT = np.zeros((len(rows), width), dtype=np.int64)
    learned_BT = np.zeros((len(rows), width), dtype=bool)
    for b, row in enumerate(rows):
        end = 0
        for sequence in row:
            start, end = end, end + len(sequence.ids)
            tokens_BT[b, start:end] = sequence.ids
            positions_BT[b, start:end] = np.arange(end - start)
            learned_BT[b, start + max(1, sequence.learned_from) : end] = True
        positions_BT[b, end:] = np.arange(width - end)
    tokens, positions, learned = (torch.from_numpy(x_BT).to(device) for x_BT in (tokens_BT, positions_BT, learned_BT))
    return tokens, positions, learned


@torch.no_grad()
def held_out_losses(
    policy: Policy, sequences: Sequence[TokenSequence], micro_batch_size: int, processes: Distributed = SINGLE_PROCESS
) -> tuple[Tensor, Tensor]:
    """(nll_N, tokens_N) of each sequence by itself, in order: Σ −log p in nats, and over how many tokens.

    Raises NonFiniteError when one of them is NaN or infinite.
    """
    own = sequences[processes.share(len(sequences))]
    nll_N = torch.zeros(len(own), dtype=torch.float64)

    def sums(few: list[int]) -> Tensor:
        losses_M, row_M = token_losses(policy, [(own[row],) for row in few])
        zero_B = torch.zeros(len(few), dtype=torch.float64, device=policy.device)
        return zero_B.index_add(0, row_M, losses_M.double()).cpu()

    order = longest_first(len(sequence.ids) for sequence in own)
    for few, nll_B in map_micro_batches(sums, order, micro_batch_size, processes):
        nll_N[few] = nll_B
    nll_N = processes.gather(nll_N.to(processes.device), len(sequences)).cpu()
    if not bool(torch.isfinite(nll_N).all()):
        raise NonFiniteError("held-out loss", "The held-out loss is NaN or infinite: the model's weights are broken.")
    return nll_N, torch.tensor([sequence.learned for sequence in sequences], dtype=torch.float64)
