"""PPO's second stage: from experience to per-token rewards, advantages and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hydralign.algorithms.advantages import gae, group_normalised, leave_one_out
from hydralign.algorithms.kl import gap_name, k1, k3
from hydralign.algorithms.masked import masked_moments, masked_sum, mean_and_variance, whiten, zero_masked
from hydralign.algorithms.rewards import token_rewards
from hydralign.distributed import SINGLE_PROCESS, Distributed
from hydralign.errors import ConfigError, did_you_mean
from hydralign.rewards.combine import require_applied
from hydralign.rewards.normalise import shape_scores
from hydralign.training.metrics import Sums, variance
from hydralign.types import Advantages, Experience


class AdvantageEstimator(Protocol):
    """From per-token rewards to advantages, and to what a critic's values are to predict."""

    def __call__(
        self, rewards_BR: Tensor, experience: Experience, processes: Distributed
    ) -> tuple[Tensor, Tensor | None]:
        """(advantages_BR, returns_BR), 0 outside the mask; returns are None where no critic is trained."""


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation, from a critic's values."""

    gamma: float = 1.0
    lam: float = 0.95

    def __call__(self, rewards_BR: Tensor, experience: Experience, processes: Distributed) -> tuple[Tensor, Tensor]:
        """See `algorithms.advantages.gae`. Raises ConfigError for an experience without values."""
        if experience.values_BR is None:
            raise ConfigError(
                "generalised advantage estimation reads values, and the policy has no critic. Load it with "
                "critic=True, or use an estimator that compares answers: LeaveOneOut or GroupNormalised."
            )
        mask_BR = experience.rollout.rows.mask_BR
        return gae(rewards_BR, experience.values_BR, mask_BR, gamma=self.gamma, lam=self.lam)


@dataclass(frozen=True)
class LeaveOneOut:
    """RLOO: an answer against the mean of the other answers to its prompt. No critic."""

    samples_per_prompt: int

    def __call__(self, rewards_BR: Tensor, experience: Experience, processes: Distributed) -> tuple[Tensor, None]:
        """See `algorithms.advantages.leave_one_out`; a return is the sum of an answer's rewards, KL and all."""
        return _by_group(leave_one_out, rewards_BR, experience, self.samples_per_prompt, processes), None


@dataclass(frozen=True)
class GroupNormalised:
    """GRPO's advantage: an answer against the mean of its prompt's answers, in units of their spread. No critic."""

    samples_per_prompt: int

    def __call__(self, rewards_BR: Tensor, experience: Experience, processes: Distributed) -> tuple[Tensor, None]:
        """See `algorithms.advantages.group_normalised`; a return is the sum of an answer's rewards, KL and all."""
        return _by_group(group_normalised, rewards_BR, experience, self.samples_per_prompt, processes), None


def _by_group(
    compare: Callable[[Tensor], Tensor],
    rewards_BR: Tensor,
    experience: Experience,
    samples: int,
    processes: Distributed,
) -> Tensor:
    """The advantage of each answer on all of its tokens. Answers to one prompt are neighbours, over all processes."""
    mask_BR = experience.rollout.rows.mask_BR
    rows = int(processes.sum(torch.tensor(float(len(experience)), device=processes.device)))
    if samples < 2 or rows % samples:
        raise ConfigError(
            f"samples_per_prompt={samples} with {rows} answers: answers to one prompt are compared with each other, so "
            "each prompt needs the same number of them, at least 2. Set ppo.batch.samples_per_prompt."
        )
    returns_PG = processes.gather(rewards_BR.sum(1), rows).view(-1, samples)
    own_B = compare(returns_PG).flatten()[processes.share(rows)]
    return zero_masked(own_B[:, None].expand_as(rewards_BR), mask_BR)


def estimate(
    experience: Experience,
    *,
    estimator: AdvantageEstimator | None = None,
    kl_coefficient: float = 0.05,
    kl_estimator: Literal["k1", "k3"] = "k1",
    whiten_advantages: bool | None = None,
    whiten_rewards: bool = False,
    score_std: float | None = None,
    score_clip: float | None = None,
    missing_eos_penalty: float | None = None,
    processes: Distributed = SINGLE_PROCESS,
) -> Advantages:
    """Rewards (score on the last real token, KL penalty on every token), advantages and returns.

    `estimator` None is `GAE()`; `whiten_advantages` None whitens those of GAE only. Scores are divided by `score_std`,
    clipped, then lowered for answers that no stop token ended. Whitening uses the moments of all real tokens of all
    processes. Stats are global means. Raises RewardError for a reward that applied to no row of any process,
    ConfigError for an unknown KL estimator or an advantage estimator that cannot read this experience.
    """
    estimators = {"k1": k1, "k3": k3}
    if kl_estimator not in estimators:
        raise ConfigError(
            f"kl_estimator={kl_estimator!r} is not known: the KL in the reward depends on it. "
            f"{did_you_mean(str(kl_estimator), estimators)}"
        )
    mask_BR = experience.rollout.rows.mask_BR
    scores_B = shape_scores(
        experience.scores.scores_B,
        experience.rollout.finished_B,
        std=score_std,
        clip=score_clip,
        missing_eos_penalty=missing_eos_penalty,
    )
    kl_BR = estimators[kl_estimator](experience.old_logprobs_BR, experience.ref_logprobs_BR, mask_BR)
    dense_BR = dense_scores(experience.scores.token_scores, mask_BR, std=score_std)
    rewards_BR = token_rewards(scores_B, kl_BR, mask_BR, coefficient=kl_coefficient, token_scores_BR=dense_BR)
    if whiten_rewards:
        rewards_BR = _whitened(rewards_BR, mask_BR, processes, subtract_mean=False)
    estimator = estimator or GAE()
    advantages_BR, returns_BR = estimator(rewards_BR, experience, processes)
    stats = _stats(experience, advantages_BR, returns_BR, kl_BR, kl_coefficient, processes)
    if isinstance(estimator, GAE) if whiten_advantages is None else whiten_advantages:
        advantages_BR = _whitened(advantages_BR, mask_BR, processes, subtract_mean=True)
    return Advantages(rewards_BR, advantages_BR, returns_BR, stats)


def _whitened(x_BR: Tensor, mask_BR: Tensor, processes: Distributed, *, subtract_mean: bool) -> Tensor:
    mean, variance = mean_and_variance(processes.sum(masked_moments(x_BR, mask_BR)))
    return whiten(x_BR, mask_BR, mean=mean, variance=variance, subtract_mean=subtract_mean).to(x_BR.dtype)


def dense_scores(
    token_scores: Sequence[Sequence[float] | None] | None, mask_BR: Tensor, *, std: float | None = None
) -> Tensor | None:
    """Per-token scores in their columns, divided by `std` as scores are; None when no reward spoke per token."""
    if token_scores is None:
        return None
    dense_BR = torch.zeros(mask_BR.shape)
    for row, values in enumerate(token_scores):
        if values is not None:
            dense_BR[row, : len(values)] = torch.tensor(values)
    return dense_BR.to(mask_BR.device) / (std or 1.0)


def _stats(
    experience: Experience,
    advantages_BR: Tensor,
    returns_BR: Tensor | None,
    kl_BR: Tensor,
    kl_coefficient: float,
    processes: Distributed,
) -> dict[str, float]:
    """Global means under the names that classic TRL gave them; kl is the k1 sum per answer, in nats.

    Of answers that top-k or top-p cut off it is called logprob_gap, since it is no KL.
    """
    rows, scores = experience.rollout.rows, experience.scores
    mask_BR = rows.mask_BR
    sums = Sums()
    sums.add_values("scores", scores.totals_B)
    for name, values in scores.terms.items():
        scored = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
        sums.add(f"reward/{name}", scored.sum(), scored.numel())
    for name, (cut, read) in scores.cut.items():
        sums.add(f"reward/{name}/cut", cut, read)
    sums.add_values("kl", k1(experience.old_logprobs_BR, experience.ref_logprobs_BR, mask_BR).sum(-1))
    sums.add_values("kl_penalty", -kl_coefficient * kl_BR.sum(-1))
    sums.add_values("advantages", advantages_BR, mask_BR)
    if returns_BR is not None and experience.values_BR is not None:
        sums.add_values("returns", returns_BR, mask_BR)
        sums.add_values("values", experience.values_BR, mask_BR)
        sums.add_values("errors", returns_BR - experience.values_BR, mask_BR)
    sums.add_values("queries", rows.prompt_lengths_B)
    sums.add_values("responses", rows.response_lengths_B)
    sums.add_values("finished", experience.rollout.finished_B)
    sums.add("logprobs", masked_sum(experience.old_logprobs_BR, mask_BR), mask_BR.sum())
    sums.add("ref_logprobs", masked_sum(experience.ref_logprobs_BR, mask_BR), mask_BR.sum())
    sums.add("rows", len(experience), 1)
    for name, values in scores.terms.items():
        sums.add(f"applied/{name}", sum(value is not None for value in values), 1)
    means = sums.means(processes)
    applied = {name: means[f"applied/{name}"] for name in scores.terms}
    require_applied(applied, round(means["rows"] * processes.count))
    return {
        f"objective/{gap_name(truncated=experience.truncated)}": means["kl"],
        "objective/kl_coef": kl_coefficient,
        "objective/logprobs": means["logprobs"],
        "objective/ref_logprobs": means["ref_logprobs"],
        "ppo/mean_scores": means["scores"],
        "ppo/std_scores": variance(means, "scores") ** 0.5,
        "ppo/mean_non_score_reward": means["kl_penalty"],
        "ppo/policy/advantages_mean": means["advantages"],
        **_critic_stats(means),
        "tokens/queries_len_mean": means["queries"],
        "tokens/responses_len_mean": means["responses"],
        "tokens/responses_len_std": variance(means, "responses") ** 0.5,
        "sampler/finished_share": means["finished"],
    } | {name: value for name, value in means.items() if name.startswith("reward/")}


def _critic_stats(means: Mapping[str, float]) -> dict[str, float]:
    """Means and variances of returns and values; none without a critic."""
    if "returns" not in means:
        return {}
    return {
        "ppo/returns/mean": means["returns"],
        "ppo/returns/var": variance(means, "returns"),
        "ppo/val/mean": means["values"],
        "ppo/val/var": variance(means, "values"),
        "ppo/val/var_explained": 1.0 - variance(means, "errors") / max(variance(means, "returns"), 1e-12),
    }
