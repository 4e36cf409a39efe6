"""The value head: a scalar from a language model's final state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """One linear layer, d + 1 parameters, on the state after the final norm.

    Starts at zero, so that the first advantages are the rewards themselves (Huang et al. 2024, detail of the
    value head). Always fp32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """values_N, fp32, in units of reward."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return hidden_ND.float() @ self.weight + self.bias
