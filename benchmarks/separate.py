"""What people run without a shared trunk: four models of full size, policy and value fully trained.

It is the library's own policy with a critic that is a whole model, so that the same loop and the same sampler drive it;
the fourth model, the reward's, is called by the benchmark as a reward function.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from hydralign.models import make_policy
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.heads.value import Critic, ValueHead
from hydralign.models.policy import Policy
from hydralign.types import TokenBatch


def separate_policy(model: Any, tokenizer: Any, *, precision: str = "fp32") -> Policy:
    """A policy of the full form with a value model of its own. It is timed and never saved."""
    values = CausalBackbone(copy.deepcopy(model), precision=precision)
    plain = make_policy(model, tokenizer, critic=False, precision=precision)
    head = ValueHead(model.config.hidden_size).to(model.device)
    return Policy(plain.form, tokenizer, critic=Critic(head, values))


class FullSizeReward:
    """A reward model as large as the policy, with random weights: one forward pass over prompt and answer."""

    def __init__(self, model: Any) -> None:
        self.backbone = CausalBackbone(copy.deepcopy(model).requires_grad_(False))

    @torch.no_grad()
    def scores(self, rows: TokenBatch) -> Tensor:
        """One number per row, read at its last token."""
        states_BTD = self.backbone.states(rows)
        last_B = (rows.lengths_B - 1).to(states_BTD.device)
        return states_BTD[torch.arange(len(rows)), last_B].mean(-1)
