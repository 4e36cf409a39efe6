"""Storage of frozen weights in bf16; whatever is trained is held in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hydralign.errors import ModelError
from hydralign.models.linear_layers import linear_layers

ADAPTER_PARTS = {"modules_to_save", "token_adapter", "trainable_tokens_delta"}
"""What PEFT calls the parts of an adapter that are no factors of a matrix."""


def convert_to_fp32(model: Any) -> Any:
    """The model with every weight and buffer of fewer bits in fp32, in place: tied weights stay tied.

    Steps as small as those of fine-tuning vanish when they are added to a weight in bf16.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32:
            tensor.data = tensor.data.float()
    return model


@contextmanager
def held_in_fp32(model: Any) -> Iterator[None]:
    """Within the block, weights that are stored in bf16 are held in fp32; no number changes."""
    rounded = [p for p in model.parameters() if p.dtype == torch.bfloat16]
    try:
        for parameter in rounded:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter in rounded:
            parameter.data = parameter.data.to(torch.bfloat16)


def require_fp32(trained: Mapping[str, torch.nn.Parameter]) -> None:
    """Raise ModelError unless every trained parameter is held in fp32 or more."""
    narrow = {name: p.dtype for name, p in trained.items() if torch.finfo(p.dtype).bits < 32}
    if narrow:
        name, dtype = next(iter(narrow.items()))
        raise ModelError(
            f"{len(narrow)} of {len(trained)} trained parameters are held in fewer than 32 bits (first: {name}, in "
            f"{str(dtype).removeprefix('torch.')}): most steps of training are too small to change such numbers, and "
            "would vanish. Convert the model with .float() before training; precision bf16 then rounds products only."
        )


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
    """Weights and biases of all linear layers, those of adapters left out: these are small, and rounding them would
    take a trained adapter and its frozen start apart.
    """
    return [
        parameter
        for name, module in linear_layers(model).items()
        if not _of_adapter(name)
        for parameter in module.parameters(recurse=False)
    ]


def _of_adapter(name: str) -> bool:
    parts = name.split(".")
    return any(part.startswith("lora_") for part in parts) or not ADAPTER_PARTS.isdisjoint(parts)
