"""Settings of supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hydralign.config.data import DemonstrationSourceConfig
from hydralign.config.model import ModelConfig
from hydralign.config.training import SupervisedConfig


class SFTConfig(SupervisedConfig):
    """Next-token prediction on demonstrations; the loss covers completions only."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Folder of this item when the recipe has several: OUT/sft/NAME."""
    model: ModelConfig | None = None
    """What is trained; None is the recipe's model."""
    data: DemonstrationSourceConfig | None = None
    """Demonstrations; None is the recipe's data.demonstrations."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest sequence, of an encoder–decoder the longest completion (its prompts are bounded by the source's
    `max_prompt_tokens`); None is the model's context, but no more than 1,024, since memory grows with it.
    """
    packing: bool = True
    """Fill each sequence with several demonstrations, which cannot see each other; an encoder–decoder reads each by
    itself.
    """
    too_long: Literal["cut", "split", "leave_out"] = "cut"
    """What happens to longer demonstrations: lose their end, become several, or are left out. Counted and reported."""
