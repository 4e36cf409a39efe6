"""Sample answers from a policy: batched, with a key-value cache, finished rows leaving the batch.

Each token is drawn by inverting the cumulative distribution in fp64 at one keyed uniform number, so tokens do not
depend on batching. Log-probabilities and values are taken from the very states that the tokens were drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hydralign.data.detokenise import decode_completions
from hydralign.data.prompts import as_prompts
from hydralign.encoder_input import feeds_encoder
from hydralign.errors import ConfigError, DataError, ModelError, NonFiniteError
from hydralign.generation.keyed import drawn_lengths, keyed_uniforms
from hydralign.models.folders.weights import require_ids_can_be_read
from hydralign.models.kernels.logprobs import apply_temperature_and_min_length
from hydralign.models.policy import Policy
from hydralign.types import Prompt, Rollout, SamplingParams, TokenBatch

COMPACT_SHARE = 1 / 8
"""Rows leave the cache when at least this share of the batch has finished: each time copies what is left of it."""


DRAWN_ELEMENTS = 1 << 18
"""Probabilities that are summed at once on a CPU: few enough to stay in a cache."""


class Sampler(Protocol):
    """Anything that answers prompts: the in-process sampler, a fake, later an engine elsewhere."""

    def __call__(self, policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        """One answer per prompt, in order."""


@torch.no_grad()
def sample(policy: Policy, prompts: Sequence[Prompt | str], params: SamplingParams | None = None) -> Rollout:
    """One answer per prompt, by ancestral sampling from softmax(logits / temperature).

    Rows are decoded `params.decode_batch_size` at a time, similar prompt lengths together. Raises ConfigError when a
    prompt and its answer do not fit the context, NonFiniteError when logits hold NaN or infinity, or overflow by a low
    temperature. Minus infinity for tokens that are not drawn is fine: it only says that they are impossible.
    Texts are encoded as data sets are; `params` None is `SamplingParams()`.
    """
    prompts, params = encoded_prompts(policy, prompts), params or SamplingParams()
    check_context(policy, prompts, params)
    rows = np.arange(params.first_row, params.first_row + len(prompts))
    limits_B = _limits(params, rows)
    uniforms_BR = keyed_uniforms(seed=params.seed, iteration=params.iteration, rows=rows, positions=int(limits_B.max()))
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row].token_ids))
    drawn = _Drawn(policy, len(prompts), int(limits_B.max()))
    # The longest first: their width is mostly that of all, and what does not fit into memory is known at once.
    for start in reversed(range(0, len(prompts), params.decode_batch_size)):
        index_B = torch.tensor(by_length[start : start + params.decode_batch_size])
        _decode(policy, prompts, params, index_B, limits_B[index_B], torch.from_numpy(uniforms_BR)[index_B], drawn)
    return drawn.rollout(policy, prompts, params)


def encoded_prompts(policy: Policy, prompts: Sequence[Prompt | str]) -> list[Prompt]:
    """The prompts as the policy reads them, texts encoded. Raises ModelError for what is no policy, DataError."""
    if not hasattr(policy, "tokenizer") or not hasattr(policy, "start"):
        raise ModelError(
            f"policy={policy!r:.80} of type {type(policy).__name__} is no policy: it cannot answer. Make one with "
            "hydralign.load_policy."
        )
    return as_prompts(prompts, policy.tokenizer)


def check_context(policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> None:
    """Raise ConfigError unless the longest prompt and answer fit the context, together or, with an encoder, each by
    itself; DataError for empty prompts, TokenizerError for ids that the model cannot read.
    """
    empty = next((i for i, prompt in enumerate(prompts) if not prompt.token_ids), None)
    if empty is not None:
        raise DataError(
            f"Prompt {empty} has no tokens: there is no state to draw its first answer token from. Leave it out, or "
            "begin it with a token such as the tokenizer's beginning-of-sequence token."
        )
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if feeds_encoder(policy.tokenizer):
        if longest > policy.context:
            raise ConfigError(
                f"The longest prompt has {longest} tokens, but the encoder is made for {policy.context}. Bound prompts "
                f"with max_prompt_tokens: {policy.context}."
            )
        if params.longest > policy.context:
            raise ConfigError(
                f"Answers may have {params.longest} tokens, but the decoder is made for {policy.context}. Shorten them "
                "(max_new_tokens, lengths)."
            )
    elif longest + params.longest > policy.context:
        room = policy.context - params.longest
        drop = f", or drop prompts with filter.max_tokens: {room}" if room > 0 else ""
        raise ConfigError(
            f"The longest prompt has {longest} tokens and answers may have {params.longest}, together "
            f"{longest + params.longest}, but the model's context holds {policy.context}"
            f"{policy.context_note or ': later tokens would have no position'}. Shorten answers "
            f"(max_new_tokens, lengths){drop}."
        )
    ids = (prompt.token_ids for prompt in prompts)
    require_ids_can_be_read(ids, policy.tokenizer, policy.vocabulary, "A prompt")


def _limits(params: SamplingParams, rows: np.ndarray) -> Tensor:
    """The largest number of new tokens of each row."""
    if params.lengths is None:
        return torch.full((len(rows),), params.max_new_tokens)
    low, high = params.lengths
    return torch.from_numpy(drawn_lengths(low, high, seed=params.seed, iteration=params.iteration, rows=rows))


class _Drawn:
    """What has been drawn so far for all rows of one call, in the caller's order, on the CPU."""

    def __init__(self, policy: Policy, rows: int, width: int) -> None:
        self.tokens_BR = torch.zeros(rows, width, dtype=torch.long)
        self.logprobs_BR = torch.zeros(rows, width)
        self.values_BR = torch.zeros(rows, width) if policy.samples_values else None
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        self.finished_B = torch.zeros(rows, dtype=torch.bool)
        self.trunk = None if policy.trunk is None else policy.trunk.collector(rows)

    def add_steps(self, index_B: Tensor, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Write what some rows were given. A step has, for each row still in the batch: its place in `index_B`, token,
        log-probability, value, whether it had not ended before, and whether it stops here.
        """
        position_N = torch.arange(len(steps)).repeat_interleave(torch.tensor([len(step[0]) for step in steps]))
        place_N, tokens_N, logprobs_N, values_N, live_N, stopped_N = (
            torch.cat(x).cpu() for x in zip(*steps, strict=True)
        )
        at_N, position_N = index_B[place_N[live_N]], position_N[live_N]
        self.tokens_BR[at_N, position_N] = tokens_N[live_N]
        self.logprobs_BR[at_N, position_N] = logprobs_N[live_N]
        if self.values_BR is not None:
            self.values_BR[at_N, position_N] = values_N[live_N]
        self.lengths_B += at_N.bincount(minlength=len(self.lengths_B))
        self.finished_B[at_N[stopped_N[live_N]]] = True

    def rollout(self, policy: Policy, prompts: Sequence[Prompt], params: SamplingParams) -> Rollout:
        """The rows as a policy reads them, and the texts without special tokens."""
        prompt_ids = [prompt.token_ids for prompt in prompts]
        answers = [ids[:n].tolist() for ids, n in zip(self.tokens_BR, self.lengths_B.tolist(), strict=True)]
        batch = batch_of(policy, prompt_ids, answers, params)
        width = batch.width
        return Rollout(
            prompts=tuple(prompts),
            rows=batch if self.trunk is None else batch.with_trunk(self.trunk.states()),
            old_logprobs_BR=self.logprobs_BR[:, :width].to(policy.device),
            values_BR=None if self.values_BR is None else self.values_BR[:, :width].to(policy.device),
            finished_B=self.finished_B.to(policy.device),
            completions=tuple(decode_completions(policy.tokenizer, prompt_ids, answers)),
        )


def batch_of(
    policy: Policy, prompt_ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], params: SamplingParams
) -> TokenBatch:
    """Prompts and the answers that were sampled to them, as the policy reads them."""
    return TokenBatch.of(
        prompt_ids,
        answers,
        pad_id=policy.tokenizer.pad_token_id,
        device=policy.device,
        temperature=params.temperature,
        min_new_tokens=params.min_new_tokens,
        stop_ids=policy.stop_ids,
    )


def _decode(
    policy: Policy,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    index_B: Tensor,
    limits_B: Tensor,
    uniforms_BR: Tensor,
    drawn: _Drawn,
) -> None:
    """Decode some rows to their ends and write them into `drawn`. `index_B` are their places there.

    The device is asked once per token: how many rows go on, and whether any of them met NaN or infinity. All else
    waits there for the end of the batch.
    """
    device = policy.device
    width = int(limits_B.max())
    decoding = policy.start([prompts[i].token_ids for i in index_B.tolist()], width)
    uniforms_BR, limits_B = uniforms_BR.to(device), limits_B.to(device)
    stop_S = torch.tensor(policy.stop_ids, device=device)
    steps: list[tuple[Tensor, ...]] = []
    done_B = torch.zeros(len(index_B), dtype=torch.bool, device=device)
    place_B = torch.arange(len(index_B), device=device)
    left = len(index_B)
    for position in range(width):
        logits_BV, hidden_BD = decoding.predict()
        tokens_B, logprobs_B = draw(logits_BV, uniforms_BR[place_B, position], params, policy.stop_ids, position)
        stopped_B = (tokens_B[:, None] == stop_S).any(dim=1)
        # Without values from these states, log-probabilities fill their place and are never read.
        values_B = policy.critic.head(hidden_BD) if policy.critic and policy.samples_values else logprobs_B
        steps.append((place_B, tokens_B, logprobs_B, values_B, ~done_B, stopped_B))
        done_B = done_B | stopped_B | (position + 1 >= limits_B[place_B])
        live, (left, bad) = left, torch.stack([(~done_B).sum(), (~torch.isfinite(logprobs_B)).sum()]).tolist()
        if bad:
            check_logits(logits_BV, position, params.first_row + index_B[place_B.cpu()])
            raise NonFiniteError(
                f"sampler/logprobs/position {position}",
                f"Log-probabilities of new token {position} hold NaN or infinity though its logits do not: dividing by "
                f"temperature {params.temperature:g} overflows. Raise sampling.temperature.",
            )
        if left == 0:
            decoding.finish(tokens_B, live)
            break
        decoding.append(tokens_B, live)
        if left <= (1 - COMPACT_SHARE) * len(done_B):
            keep_B = done_B.byte().argsort(stable=True)[:left]
            decoding.keep(keep_B)
            place_B, done_B = place_B[keep_B], done_B[keep_B]
    drawn.add_steps(index_B, steps)
    lengths_B = torch.tensor([len(prompts[i].token_ids) for i in index_B.tolist()]) + drawn.lengths_B[index_B]
    trunk = decoding.trunk_states(lengths_B)
    if drawn.trunk is not None and trunk is not None:
        drawn.trunk.add(index_B, trunk)


def draw(
    logits_BV: Tensor, uniforms_B: Tensor, params: SamplingParams, stop_ids: Sequence[int], position: int
) -> tuple[Tensor, Tensor]:
    """(tokens_B, logprobs_B): inverse of the cumulative distribution, summed in fp64, at `uniforms_B`.

    Log-probabilities are of the whole distribution, before top-k and top-p cut it; NaN where the logits of a row hold
    NaN or infinity.
    """
    rows = len(logits_BV) if logits_BV.is_cuda else max(1, DRAWN_ELEMENTS // logits_BV.shape[1])
    few = zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)
    tokens, logprobs = zip(
        *(_draw(logits, uniforms, params, stop_ids, position) for logits, uniforms in few), strict=True
    )
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(
    logits_BV: Tensor, uniforms_B: Tensor, params: SamplingParams, stop_ids: Sequence[int], position: int
) -> tuple[Tensor, Tensor]:
    blocked_B = torch.full((len(logits_BV),), position < params.min_new_tokens, device=logits_BV.device)
    blocking = stop_ids if position < params.min_new_tokens else ()
    logits_BV = apply_temperature_and_min_length(
        logits_BV, temperature=params.temperature, stop_ids=blocking, blocked_N=blocked_B
    )
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    probabilities_BV = truncate(logprobs_BV.exp(), top_k=params.top_k, top_p=params.top_p)
    cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
    points_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    tokens_B = torch.searchsorted(cumulative_BV, points_B1, right=True).squeeze(1).clamp(max=logits_BV.shape[1] - 1)
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None]).squeeze(1)


def truncate(probabilities_BV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Zero all but the k likeliest tokens and all but the smallest likeliest set with mass ≥ p; not renormalised."""
    if top_k > 0:
        kth_B1 = probabilities_BV.topk(min(top_k, probabilities_BV.shape[1]), dim=-1).values[:, -1:]
        probabilities_BV = probabilities_BV.masked_fill(probabilities_BV < kth_B1, 0.0)
    if top_p < 1.0:
        ordered_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
        before_BV = ordered_BV.cumsum(-1) - ordered_BV
        dropped_BV = before_BV >= top_p * ordered_BV.sum(-1, keepdim=True)
        probabilities_BV = probabilities_BV.masked_fill(
            torch.zeros_like(dropped_BV).scatter(1, order_BV, dropped_BV), 0.0
        )
    return probabilities_BV


def check_logits(logits_BV: Tensor, position: int, rows_B: Tensor) -> None:
    """Raise NonFiniteError naming the first global row and position whose logits hold NaN or infinity.

    Minus infinity rules a token out, and is an error only where it rules out all of them.
    """
    bad_B = ~torch.isfinite(logits_BV.amax(dim=-1))
    if bool(bad_B.any()):
        row = int(rows_B[bad_B.cpu()].min())
        raise NonFiniteError(
            f"sampler/logits/position {position}",
            f"Logits of new token {position} (row {row}, {int(bad_B.sum())} rows in all) hold NaN or "
            "infinity: no token can be drawn from them. The weights or activations have overflowed: lower the "
            "learning rate, or use precision fp32.",
        )
