"""Storage of frozen weights in bf16."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D


def store_matrices_in_bf16(model: Any) -> None:
    """Convert the linear layers of a frozen model to bf16 in place.

    Autocast rounds exactly these to bf16 at every call, so storing them rounded saves half their memory and
    changes no result: an fp32 policy under autocast and its bf16 reference stay bit-equal. Norms and embeddings
    stay in fp32, and so does a head tied to the embeddings, because autocast does not round look-ups.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    for parameter in _matrices(model):
        if id(parameter) not in embeddings:
            parameter.data = parameter.data.to(torch.bfloat16)


def store_frozen_in_bf16(model: Any) -> None:
    """Convert whatever linear layers of a model are frozen, its head included, to bf16 in place.

    A head that is tied to the embeddings rounds these too. So this is for models whose policy and reference share
    them: both read the same rounded look-ups.
    """
    for parameter in _matrices(model):
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def _matrices(model: Any) -> list[torch.nn.Parameter]:
    """Weights and biases of all linear layers."""
    linear = (m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    return [parameter for module in linear for parameter in module.parameters(recurse=False)]
