"""Values: a linear head on final states, and the critic that says which states it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydralign.models.backbones.backbone import Backbone
from hydralign.types import TokenBatch


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


@dataclass(frozen=True)
class Critic:
    """Where values come from: a head on the policy's own states, or on those of a backbone of its own."""

    head: ValueHead
    backbone: Backbone | None = None
    """Layers above the policy's trunk, or a whole model; None reads the policy's states."""

    def values(self, batch: TokenBatch, hidden_ND: Tensor | None) -> Tensor:
        """values_N of the real response tokens; `hidden_ND` are the policy's states."""
        if self.backbone is not None:
            hidden_ND = self.backbone.hidden(batch)
        assert hidden_ND is not None
        return self.head(hidden_ND)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer updates, by stable name."""
        body = {} if self.backbone is None else dict(self.backbone.body.named_parameters())
        named = {f"value_branch.{name}": p for name, p in body.items() if p.requires_grad}
        return named | {f"value_head.{name}": p for name, p in self.head.named_parameters()}
