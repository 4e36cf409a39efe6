"""The last layer's position-wise parts at those positions only that somebody reads.

Its feed-forward block and the output projection of its attention work on each position by itself, and nothing above
them mixes positions, so what they would give elsewhere is never seen: a prompt of 256 tokens with an answer of 48
spares them five sixths of their work, and the backward pass as much. The parts are found by name, so that they are what
their names say is tried out before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.backbones.slicing import ARCHITECTURE_ERRORS, layers_of, slice_layers
from hydralign.models.versions import Conv1D

OUTPUT_PROJECTIONS = ("c_proj", "o_proj", "out_proj", "dense")
"""What architectures call the matrix behind their attention."""


def position_wise_parts(body: Any) -> list[nn.Module]:
    """The position-wise parts of the last layer, where they bear the usual names and are made of matrices.

    Of several matrices with the name of an output projection none is taken: which one ends the attention is unknown.
    """
    try:
        layer = layers_of(body)[-1]
    except ModelError:
        return []
    block: nn.Module | None = getattr(layer, "mlp", None)
    if block is None:
        return []
    inside = {id(module) for module in block.modules()}
    outputs = [m for n, m in layer.named_modules() if n.split(".")[-1] in OUTPUT_PROJECTIONS and id(m) not in inside]
    return [module for module in (block, *(outputs if len(outputs) == 1 else ())) if _of_matrices(module)]


@torch.no_grad()
def verify_parts(parts: list[nn.Module], body: Any, allowed: Callable[[float], float]) -> list[nn.Module]:
    """These parts of the body's last layer if final states are the same with them at some positions only, else none.

    Runs that layer alone, twice, on a few states. `allowed` is how far rounding takes numbers of a size apart.
    """
    if not parts:
        return []
    embedding_VD = body.get_input_embeddings().weight
    device, width = embedding_VD.device, embedding_VD.shape[1]
    # Small, because layers add to the states that they read: here what they add outweighs these.
    states_BTD = 0.01 * torch.arange(2 * 4 * width, device=device, dtype=torch.float32).sin().view(2, 4, width)
    row_N, column_N = torch.tensor([[0, 0, 1], [1, 3, 2]], device=device)
    last = len(layers_of(body)) - 1
    try:
        top = slice_layers(body, last, last + 1)
        plain_BTD = top(inputs_embeds=states_BTD, use_cache=False).last_hidden_state
        with only_at_positions(parts, row_N, column_N):
            narrow_BTD = top(inputs_embeds=states_BTD, use_cache=False).last_hidden_state
    except ARCHITECTURE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return []
    gap = float((narrow_BTD - plain_BTD)[row_N, column_N].abs().max())
    return parts if gap <= allowed(float(plain_BTD.abs().max())) else []


def _of_matrices(module: nn.Module) -> bool:
    holders = (inner for inner in module.modules() if any(True for _ in inner.parameters(recurse=False)))
    return all(isinstance(inner, (nn.Linear, Conv1D)) for inner in holders)


@contextmanager
def only_at_positions(parts: Sequence[nn.Module], row_N: Tensor, column_N: Tensor) -> Iterator[None]:
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
