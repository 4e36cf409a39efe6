"""Settings of the comparison: two models, the same held-out prompts, the same random numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from hydralign.config.base import Config
from hydralign.config.ppo import SamplingConfig
from hydralign.config.rewards import RewardTerm


class ShareConfig(Config):
    """A share of answers as a metric of its own: those whose value lies above a bound."""

    name: str
    """Name of the metric."""
    of: str = "score"
    """The metric that is looked at."""
    above: float = 0.0
    """Answers strictly above this count."""


class CompareConfig(Config):
    """Before and after, with paired intervals and a report to show."""

    before: str | None = None
    """Model folder or hub id; None is the model that ppo started from."""
    after: str | None = None
    """Model folder or hub id; None is the model that ppo made."""
    prompts: int = Field(default=1000, ge=2)
    """Held-out prompts of data.prompts to answer; fewer are used, and reported, when the data hold fewer."""
    score: tuple[RewardTerm, ...] = ()
    """Terms whose weighted sum is the primary metric; none are ppo's rewards."""
    judges: tuple[RewardTerm, ...] = ()
    """Further opinions, each a metric of its own, which nothing was trained on."""
    shares: tuple[ShareConfig, ...] = ()
    """Shares of answers above a bound."""
    references: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns of the prompts that hold an answer of a human, one name or several. With them ROUGE-1, 2 and L of every
    answer are metrics: F measure, words stemmed, L over the whole text, the best of a prompt's references."""
    sampling: SamplingConfig | None = None
    """How answers are sampled; None is as ppo does. With top_k or top_p no KL is reported: the answers are then no
    samples of the distribution that it is of, and their log-probability gap goes by another name."""
    micro_batch_size: int = Field(default=32, ge=1)
    """Most rows in one forward pass."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""
    seed: int | None = Field(default=None, ge=0)
    """Keys the answers; None is the recipe's seed."""
    title: str | None = None
    """Heading of the report; None is the name of the output folder."""
    notes: tuple[str, ...] = ()
    """Sentences to stand at the top of the report, such as where its labels come from."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of both models; auto is bf16 where this machine multiplies it clearly faster than fp32."""

    @field_validator("references", mode="before")
    @classmethod
    def _one_or_several(cls, references: Any) -> Any:
        return (references,) if isinstance(references, str) else references
