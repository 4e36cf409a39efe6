"""The linear layers of a model, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from hydralign.models.versions import Conv1D


def linear_layers(model: Any) -> dict[str, Any]:
    """Every linear layer by its dotted name, those of GPT-2's own kind included."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
