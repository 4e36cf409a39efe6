"""Settings that all supervised loops share: batches, optimizer, evaluation, saving."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from hydralign.config.base import Beta, Config
from hydralign.config.paths import require_path_fits


class SupervisedBatchConfig(Config):
    """How many rows an optimizer step learns from, and how many of them go through the model at once."""

    rows: int = Field(default=32, ge=1)
    """Rows per optimizer step over all processes: packed sequences, pairs or texts."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Most rows in one forward and backward pass; changes memory, never the mathematics."""


class SupervisedOptimizerConfig(Config):
    """AdamW and its schedule."""

    type: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; None is filled in when the recipe is read, by how much of the model is trained."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's moment decay."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's ε."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls to 0 over the steps after warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm on every optimizer step."""


class SupervisedEvaluationConfig(Config):
    """Held-out rows, measured before, after and on the way."""

    rows: int = Field(default=1000, ge=2)
    """Most held-out rows to measure."""
    every: int = Field(default=0, ge=0)
    """Also measure every so many steps; 0 is before and after only."""


class SupervisedSavingConfig(Config):
    """What a stopped run goes on from."""

    checkpoint_every: int = Field(default=200, ge=0)
    """Steps between checkpoints; 0 writes one only when the run is interrupted, and at the end."""
    keep: int = Field(default=1, ge=1)
    """Newest checkpoints that are kept."""


class SupervisedConfig(Config):
    """What every supervised section has."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows; fractions are fine."""
    batch: SupervisedBatchConfig = SupervisedBatchConfig()
    """Rows per step and per pass."""
    optimizer: SupervisedOptimizerConfig = SupervisedOptimizerConfig()
    """Learning rate, schedule, clipping."""
    evaluation: SupervisedEvaluationConfig = SupervisedEvaluationConfig()
    """Held-out rows."""
    saving: SupervisedSavingConfig = SupervisedSavingConfig()
    """Checkpoints."""
    trackers: tuple[Literal["wandb", "trackio", "tensorboard"], ...] = ()
    """Mirrors of the local metrics file."""
    stop_after_bad_steps: int = Field(default=3, ge=1)
    """Stop with a diagnosis after this many non-finite steps in a row."""

    @field_validator("name", check_fields=False)
    @classmethod
    def _names_a_folder(cls, name: str | None) -> str | None:
        return name and require_path_fits(name, "name")
