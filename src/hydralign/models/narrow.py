"""The last layer's position-wise parts at those positions only that somebody reads.

Its feed-forward block and the output projection of its attention work on each position by itself, and nothing above
them mixes positions, so what they would give elsewhere is never seen: a prompt of 256 tokens with an answer of 48
spares them five sixths of their work, and the backward pass as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hydralign.errors import ModelError
from hydralign.models.split import layers_of

OUTPUT_PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
"""What architectures call the matrix behind their attention."""


def last_parts(body: Any) -> list[nn.Module]:
    """The position-wise parts of the last layer, where they bear the usual names and are made of matrices."""
    try:
        layer = layers_of(body)[-1]
    except ModelError:
        return []
    block: nn.Module | None = getattr(layer, "mlp", None)
    if block is None:
        return []
    inside = {id(module) for module in block.modules()}
    outputs = [m for n, m in layer.named_modules() if n.split(".")[-1] in OUTPUT_PROJECTIONS and id(m) not in inside]
    return [module for module in (block, *outputs) if _of_matrices(module)]


def _of_matrices(module: nn.Module) -> bool:
    holders = (inner for inner in module.modules() if any(True for _ in inner.parameters(recurse=False)))
    return all(isinstance(inner, (nn.Linear, Conv1D)) for inner in holders)


@contextmanager
def only_at(parts: Sequence[nn.Module], row_N: Tensor, column_N: Tensor) -> Iterator[None]:
    """Within the block these modules read these positions only, and hand on zeros elsewhere."""
    shape: list[torch.Size] = []

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shape[:] = [args[0].shape]
        return tuple(x[row_N, column_N][None] if isinstance(x, Tensor) else x for x in args)

    def scatter(_: nn.Module, __: tuple[Any, ...], out_1ND: Tensor) -> Tensor:
        wide_BTD = out_1ND.new_zeros(*shape[0][:2], out_1ND.shape[2])
        return wide_BTD.index_put((row_N, column_N), out_1ND[0])

    handles = [part.register_forward_pre_hook(gather) for part in parts]
    handles += [part.register_forward_hook(scatter) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
