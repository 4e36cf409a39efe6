"""What people run without a shared trunk: four models of full size, policy and value fully trained.

It stands behind the same `Policy` face as the library's own forms, so that the same loop and the same sampler drive
it; the fourth model, the reward's, is called by the benchmark as a reward function.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.models.backbones.causal import CausalModel
from hydralign.models.forms.full import FullPolicy
from hydralign.models.heads.value import ValueHead
from hydralign.types import PolicyOutput, TokenBatch


class SeparatePolicy(FullPolicy):
    """The full form with a value model of its own."""

    samples_values = False

    def __init__(self, model: Any, tokenizer: Any, *, precision: str = "fp32") -> None:
        super().__init__(model, tokenizer, ValueHead(model.config.hidden_size), precision=precision)
        self.values = CausalModel(copy.deepcopy(model), precision=precision)

    def evaluate(self, rows: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities from one model, values from the other."""
        return self.causal.evaluate(
            rows, self.value_head, self.stop_ids, entropy_gradient=entropy_gradient, values=self.values
        )

    def read_values(self, rows: TokenBatch) -> Tensor:
        """Values from the value model."""
        return self.values.read_values(rows, self.value_head)

    def trained(self) -> dict[str, nn.Parameter]:
        """All weights of policy and value model."""
        body = self.values.body.named_parameters()
        return super().trained() | {f"value_model.{name}": p for name, p in body}

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Refused: this exists to be timed."""
        raise ModelError(f"{folder}: this set-up is timed and then dropped. Save a policy of the full form instead.")


class FullSizeReward:
    """A reward model as large as the policy, with random weights: one forward pass over prompt and answer."""

    def __init__(self, model: Any) -> None:
        self.causal = CausalModel(copy.deepcopy(model).requires_grad_(False))

    @torch.no_grad()
    def scores(self, rows: TokenBatch) -> Tensor:
        """One number per row, read at its last token."""
        states_BTD = self.causal.states(rows)
        last_B = (rows.lengths_B - 1).to(states_BTD.device)
        return states_BTD[torch.arange(len(rows)), last_B].mean(-1)
