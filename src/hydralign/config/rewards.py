"""The terms of a reward: each is a source of scores with a weight of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hydralign.config.base import Config


class RewardTermConfig(Config):
    """What all reward terms share."""

    name: str | None = None
    """Name in metrics; None takes the function's, the label's or the folder's."""
    weight: float = 1.0
    """Factor in the sum."""
    minus_reference: str | None = None
    """Column with a reference answer whose own score is subtracted (reference answers then average 0)."""


class FunctionRewardConfig(RewardTermConfig):
    """A Python callable `(prompts, completions, **columns) -> list`."""

    type: Literal["function"] = "function"
    """Tag of this kind of term."""
    function: str
    """module:function, or path/to/file.py:function (relative to where the command is run)."""


class ClassifierRewardConfig(RewardTermConfig):
    """A text classifier, read at one label by name."""

    type: Literal["classifier"] = "classifier"
    """Tag of this kind of term."""
    path: str
    """Folder or hub id of a sequence-classification model."""
    label: str
    """Name of the label whose score is the reward."""
    output: Literal["logit", "log_odds", "probability"] = "logit"
    """Raw logit, log p/(1-p), or p."""
    activation: Literal["softmax", "sigmoid"] | None = None
    """What makes p: softmax where labels exclude each other, sigmoid where a text can have several; None takes it from
    the model's problem_type, and softmax where it has none."""
    text: Literal["completion", "prompt+completion"] = "prompt+completion"
    """What the classifier reads; of a text that is too long, the end."""
    batch_size: int = Field(default=32, ge=1)
    """Texts per forward pass."""


class ModelRewardConfig(RewardTermConfig):
    """A reward model folder: sequence classification with one output."""

    type: Literal["model"] = "model"
    """Tag of this kind of term."""
    path: str
    """Folder or hub id of the reward model."""
    batch_size: int = Field(default=32, ge=1)
    """Texts per forward pass."""


RewardTerm = Annotated[FunctionRewardConfig | ClassifierRewardConfig | ModelRewardConfig, Field(discriminator="type")]
