"""The two read-outs of a language model's final state: token logits and a scalar value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError

FEW_STATES = 32
"""Up to this many states the output head's product is bound by reading its weights."""


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


class OutputHead:
    """The language-model head of a transformers model, with the logit scaling that its family applies.

    Not a module of its own: the weights stay in the model (tied or not).
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.linear = model.get_output_embeddings()
        if self.linear is None:
            raise ModelError(
                f"{type(model).__name__} has no output embeddings: it is not a language model that can be sampled. "
                "Name a causal language model."
            )
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )

    @property
    def vocabulary(self) -> int:
        """V: how many tokens it tells apart."""
        return int(self.linear.weight.shape[0])

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained, so that gradients only pass through."""
        return not any(p.requires_grad for p in self.linear.parameters())

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV, fp32 whatever the precision of the product."""
        logits_NV = self._product(hidden_ND).float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def _product(self, hidden_ND: Tensor) -> Tensor:
        """The linear layer's own product. For a few fp32 states on a CPU it is read from memory faster row by row."""
        linear: Any = self.linear
        plain = (
            isinstance(linear, nn.Linear) and getattr(linear, "bias", None) is None and hidden_ND.device.type == "cpu"
        )
        alone = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if plain and alone and hidden_ND.dim() == 2 and len(hidden_ND) <= FEW_STATES:
            return (linear.weight @ hidden_ND.t()).t().contiguous()
        return linear(hidden_ND)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of scaling and soft cap, at the logits that they gave."""
        if self.softcap:
            return (1 - (logits / self.softcap).square()) * self.scale
        return self.scale

    def pull(self, gradient_NV: Tensor, slope_NV: Tensor | float) -> Tensor:
        """A gradient of the logits brought back to the states, gradient_ND fp32; for a frozen head."""
        weighed_NV = gradient_NV if isinstance(slope_NV, float) and slope_NV == 1.0 else gradient_NV * slope_NV
        return (weighed_NV.to(self.linear.weight.dtype) @ self.linear.weight).float()

    def pull_chosen(self, targets_N: Tensor, slope_N1: Tensor | float) -> Tensor:
        """`pull` of a gradient that is 1 at one logit per row and 0 elsewhere."""
        return self.linear.weight[targets_N].float() * slope_N1
