"""The output head's product for few states on a CPU, where reading its weights is what takes time.

The plain version is `linear(hidden_ND)`, which `__call__` takes wherever this one has no advantage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEW_STATES = 32
"""Up to this many states the product is bound by reading the weights."""
PACKED_FROM = 32
"""Tokens of an answer from which a copy of frozen weights, laid out for few states, is worth its room."""


class FewStates:
    """A linear layer without bias that multiplies few states faster; others go through it as they are."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear
        self.packed: tuple[int, Tensor] | None = None
        """(version of the weights, the copy of them)."""

    @property
    def applies(self) -> bool:
        """Whether it is such a layer."""
        return type(self.linear) is nn.Linear and self.linear.bias is None

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """product_NV."""
        linear = self.linear
        few = len(hidden_ND) <= FEW_STATES and hidden_ND.dim() == 2 and hidden_ND.device.type == "cpu"
        alone = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if not (self.applies and few and alone):
            return linear(hidden_ND)
        if self.packed and self.packed[0] == linear.weight._version:
            return torch.ops.mkldnn._linear_pointwise(hidden_ND.contiguous(), self.packed[1], None, "none", [], "")
        return (linear.weight @ hidden_ND.t()).t().contiguous()

    def pack(self) -> None:
        """Lay out the weights of a frozen fp32 layer once more, as far as torch can: with 8 states of width 512
        products take half the time. A copy of weights that changed is not used.
        """
        if not self.applies or self.linear.weight.requires_grad:
            return
        weight = self.linear.weight
        known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        if not known or weight.dtype != torch.float32 or weight.device.type != "cpu":
            return
        if self.packed is None or self.packed[0] != weight._version:
            copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW_STATES)
            self.packed = (weight._version, copy)
