"""Storage of frozen weights in bf16 without changing what autocast computes."""

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
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and id(module.weight) not in embeddings:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
