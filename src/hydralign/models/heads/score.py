"""The score head: outputs of a sequence classifier at each text's last real token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def outputs(model: nn.Module, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """`logits_BC`: the head's outputs at each row's last real token, with gradients; right padding, found by length.

    Works on the plain model and under PEFT. An encoder with a head of its own kind is read by its own forward pass.
    """
    tokens_BT, mask_BT, lengths_B = pad_right(rows, pad_id, next(model.parameters()).device)
    core: Any = model
    if hasattr(core, "get_base_model"):
        core = core.get_base_model()
    if not hasattr(core, "score"):
        logits_BC: Tensor = model(input_ids=tokens_BT, attention_mask=mask_BT.long()).logits
        return logits_BC
    states_BTD = core.base_model(input_ids=tokens_BT, attention_mask=mask_BT.long(), use_cache=False).last_hidden_state
    logits_BC = core.score(states_BTD[torch.arange(len(rows), device=states_BTD.device), lengths_B - 1])
    return logits_BC


def scores(model: nn.Module, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """`scores_B`: the first, and of a reward model the only, column of `outputs`."""
    return outputs(model, rows, pad_id)[:, 0]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """`tokens_BT` (int64), `mask_BT` (True for real tokens) and `lengths_B` of these rows on `device`."""
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    mask_BT = torch.arange(longest, device=device) < lengths_B[:, None]
    return tokens_BT, mask_BT, lengths_B
