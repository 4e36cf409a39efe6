"""Settings of the PPO loop, grouped by concern.

Defaults follow the N+ implementation details of RLHF with PPO (Huang et al. 2024).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hydralign.config.base import Beta, Config
from hydralign.config.model import ModelConfig
from hydralign.config.rewards import RewardTerm


class LengthsConfig(Config):
    """Each row gets a maximum of its own, drawn uniformly between the two, both inclusive."""

    low: int = Field(ge=1)
    """Fewest."""
    high: int = Field(ge=1)
    """Most."""

    @model_validator(mode="after")
    def _ordered(self) -> LengthsConfig:
        if self.low > self.high:
            raise ValueError(
                f"lengths.low={self.low} is above lengths.high={self.high}: no length lies between. Swap the two."
            )
        return self


class SamplingConfig(Config):
    """How answers are sampled. The same temperature and end-of-sequence mask shape every log-probability."""

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by this, in sampling, policy and reference alike."""
    min_new_tokens: int = Field(default=0, ge=0)
    """The end-of-sequence token is impossible before this many tokens."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer."""
    lengths: LengthsConfig | None = None
    """Draw each row's own maximum instead of max_new_tokens."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens only; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the likeliest tokens up to this mass only; 1 keeps all."""
    allow_truncated_sampling: bool = False
    """PPO with top_k or top_p is off-policy, and no KL is measured; set this to run it all the same."""
    decode_batch_size: int = Field(default=64, ge=1)
    """Rows decoded together in one process; changes speed and memory, and in fp32 on CPU no token."""


class BatchConfig(Config):
    """How one iteration's rows are cut into optimizer steps and forward passes."""

    rows: int = Field(default=64, ge=1)
    """Answers per iteration over all processes: prompts × samples_per_prompt."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers per prompt."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the rows of an iteration."""
    minibatches: int = Field(default=4, ge=1)
    """Optimizer steps per pass."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Most rows in one forward and backward pass; changes memory, never the mathematics."""

    @model_validator(mode="after")
    def _divides(self) -> BatchConfig:
        for name in ("minibatches", "samples_per_prompt"):
            if self.rows % getattr(self, name):
                raise ValueError(
                    f"batch.rows={self.rows} is not a multiple of batch.{name}={getattr(self, name)}: rows would "
                    f"be dropped or weighted unequally. Change ppo.batch.rows or ppo.batch.{name}."
                )
        return self

    @property
    def prompts(self) -> int:
        """Prompts per iteration."""
        return self.rows // self.samples_per_prompt

    @property
    def minibatch_rows(self) -> int:
        """Rows per optimizer step."""
        return self.rows // self.minibatches


class FixedKL(Config):
    """The coefficient never changes."""

    type: Literal["fixed"] = "fixed"
    """Tag of this controller."""


class AdaptiveKL(Config):
    """The coefficient follows a target (Ziegler et al. 2019, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"
    """Tag of this controller."""
    target: float = Field(default=6.0, gt=0)
    """Wanted KL per answer, in nats (k1, summed over tokens)."""
    horizon: int = Field(default=10_000, ge=1)
    """Answers over which the coefficient can change by about 20 %."""


class KLConfig(Config):
    """The penalty for leaving the reference."""

    coefficient: float = Field(default=0.05, ge=0)
    """Start value of β; each token's reward loses β·KL."""
    estimator: Literal["k1", "k3"] = "k1"
    """Per-token estimate in the reward (Schulman 2020)."""
    controller: Annotated[FixedKL | AdaptiveKL, Field(discriminator="type")] = FixedKL()
    """Fixed or adaptive."""


class ShapingConfig(Config):
    """What happens to scores before the KL penalty is added."""

    scale: Literal["none", "batch", "running"] = "none"
    """Divide scores by their standard deviation, of this batch or of all so far; the mean stays."""
    clip: float | None = Field(default=None, gt=0)
    """Bound on the absolute value of scores per answer, after scaling; scores per token are not clipped."""
    missing_eos_penalty: float | None = Field(default=None, ge=0)
    """Subtracted from the score of answers that no stop token ended, after clipping."""
    whiten_rewards: bool = False
    """Rescale the per-token rewards around their mean to a standard deviation of 1."""


class GAEConfig(Config):
    """Generalised advantage estimation (Schulman et al. 2016), from the values of a critic."""

    type: Literal["gae"] = "gae"
    """Tag of this estimator."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ: 1 is Monte Carlo, 0 one-step."""
    whiten: bool = True
    """Zero mean and unit variance over all real tokens of the iteration."""


class LeaveOneOutConfig(Config):
    """RLOO (Ahmadian et al. 2024): each answer against the mean of the other answers to its prompt. No critic."""

    type: Literal["rloo"] = "rloo"
    """Tag of this estimator."""
    whiten: bool = False
    """Zero mean and unit variance over all real tokens of the iteration."""


class GroupNormalisedConfig(Config):
    """GRPO's advantage (Shao et al. 2024): each answer against the mean of its prompt's, ÷ their spread. No critic."""

    type: Literal["grpo"] = "grpo"
    """Tag of this estimator."""
    whiten: bool = False
    """Zero mean and unit variance over all real tokens of the iteration."""


AdvantageConfig = Annotated[GAEConfig | LeaveOneOutConfig | GroupNormalisedConfig, Field(discriminator="type")]


class LossConfig(Config):
    """The clipped objective (Schulman et al. 2017)."""

    clip: float = Field(default=0.2, gt=0)
    """Bound on the probability ratio's distance from 1."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """Bound on a value's move per iteration; None switches value clipping off."""
    value_coefficient: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    average: Literal["token", "sequence"] = "token"
    """Every token counts alike, or every answer."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop an iteration's updates when the k3 estimate of KL(old, new) per token exceeds this."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    type: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; None becomes 3e-6 (full) or 3e-5 (LoRA) when the recipe is read."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's moment decay."""
    eps: float = Field(default=1e-5, gt=0)
    """AdamW's ε; 1e-5 keeps the first steps small."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Iterations over which the rate rises linearly."""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls to 0 over the iterations after warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm on every optimizer step."""


class EvaluationConfig(Config):
    """Held-out evaluation: prompts that are answered before and after, with the same random numbers."""

    prompts: int = Field(default=500, ge=2)
    """Held-out prompts to answer; fewer are used, and reported, when the data hold fewer."""
    every: int = Field(default=0, ge=0)
    """Also evaluate every so many iterations; 0 is before and after only."""


class SavingConfig(Config):
    """What is written while the run goes on."""

    checkpoint_every: int = Field(default=50, ge=0)
    """Iterations between checkpoints; 0 writes one at the end only."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    samples_every: int = Field(default=10, ge=1)
    """Iterations between rows of samples.jsonl."""
    samples: int = Field(default=8, ge=0)
    """Answers written each time."""


class PPOConfig(Config):
    """Proximal policy optimisation on answers to prompts."""

    steps: int = Field(default=100, ge=1)
    """Iterations: each samples, scores, estimates and updates once."""
    rewards: tuple[RewardTerm, ...]
    """Terms whose weighted sum is the score."""
    model: ModelConfig | None = None
    """Where it starts; None is the recipe's model, with the weights that the sft section made when there is one."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are sampled."""
    batch: BatchConfig = BatchConfig()
    """Rows, optimizer steps, forward passes."""
    kl: KLConfig = KLConfig()
    """The KL penalty."""
    shaping: ShapingConfig = ShapingConfig()
    """Scores before the KL penalty."""
    advantages: AdvantageConfig = GAEConfig()
    """Who gets the credit. Without a type it is gae; rloo and grpo compare the answers to each prompt and need no
    critic: no value head is made, trained or saved.
    """
    loss: LossConfig = LossConfig()
    """The objective."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Learning rate, schedule, clipping."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Before and after."""
    saving: SavingConfig = SavingConfig()
    """Checkpoints and samples."""
    trackers: tuple[Literal["wandb", "trackio", "tensorboard"], ...] = ()
    """Mirrors of the local metrics file."""
    stop_after_bad_steps: int = Field(default=3, ge=1)
    """Stop with a diagnosis after this many non-finite iterations in a row."""

    @field_validator("advantages", mode="before")
    @classmethod
    def _gae_without_a_type(cls, value: Any) -> Any:
        return {"type": "gae", **value} if isinstance(value, dict) else value

    @property
    def has_critic(self) -> bool:
        """Whether values are learned."""
        return isinstance(self.advantages, GAEConfig)

    @model_validator(mode="after")
    def _compared_answers(self) -> PPOConfig:
        samples = self.batch.samples_per_prompt
        if not self.has_critic and samples < 2:
            raise ValueError(
                f"advantages.type={self.advantages.type} with batch.samples_per_prompt={samples}: it compares the "
                "answers to each prompt with each other, so at least 2 are needed. Set ppo.batch.samples_per_prompt, "
                "to 4 for example."
            )
        usual = LossConfig()
        unused = [n for n in ("value_clip", "value_coefficient") if getattr(self.loss, n) != getattr(usual, n)]
        if unused and not self.has_critic:
            raise ValueError(
                f"loss.{unused[0]} with advantages.type={self.advantages.type}: there is no critic, so no value loss: "
                "it would be ignored. Leave it out, or use advantages.type gae."
            )
        return self

    @model_validator(mode="after")
    def _coherent(self) -> PPOConfig:
        sampling = self.sampling
        if (sampling.top_k or sampling.top_p < 1) and not sampling.allow_truncated_sampling:
            raise ValueError(
                f"sampling.top_k={sampling.top_k}, top_p={sampling.top_p}: PPO's ratios assume samples of the "
                "whole distribution, truncation makes them off-policy. Use top_k=0 and top_p=1, or set "
                "ppo.sampling.allow_truncated_sampling to accept it."
            )
        if (sampling.top_k or sampling.top_p < 1) and isinstance(self.kl.controller, AdaptiveKL):
            raise ValueError(
                f"kl.controller is adaptive with sampling.top_k={sampling.top_k}, top_p={sampling.top_p}: it follows a "
                "KL, and truncated samples do not measure one (their mean log-ratio can be far below 0, which would "
                "switch the penalty off). Use {type: fixed}, or sample the whole distribution."
            )
        shortest = sampling.lengths.low if sampling.lengths else sampling.max_new_tokens
        if sampling.min_new_tokens > shortest:
            raise ValueError(
                f"sampling.min_new_tokens={sampling.min_new_tokens} is above the shortest maximum {shortest}: "
                "such a row could never end itself. Lower min_new_tokens or raise the maximum."
            )
        if not self.rewards:
            raise ValueError("ppo.rewards is empty: there is nothing to learn from. Name at least one reward.")
        return self
