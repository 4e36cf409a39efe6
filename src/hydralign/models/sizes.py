"""How large a backbone model is: parameters by part, and what one of its layers keeps while it works.

Parameters are counted. What autograd saves and what the key-value cache holds are measured on a copy of the top layer,
so they hold for any architecture and attention kernel. No other weight is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.slicing import layers_of, modules_after_layers, slice_layers
from hydralign.models.branch import Branch
from hydralign.models.kernels.cache import RoomyCache
from hydralign.models.kernels.response_only import only_at_positions, position_wise_parts
from hydralign.models.linear_layers import linear_layers
from hydralign.models.precision import store_matrices_in_bf16
from hydralign.models.versions import LORA_TARGETS, Conv1D, cache_argument


@dataclass(frozen=True)
class LayerSize:
    """Parameters of one layer, without adapters."""

    parameters: int
    matrices: int
    """Those of them in linear layers, which bf16 mode stores in bf16 where they are frozen."""
    inputs: int
    """Σ input widths of the linear layers that LoRA would adapt."""
    outputs: int
    """Σ their output widths."""


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps of one layer for the backward pass, parameters not counted."""

    per_token: float
    last: float
    """Per token, where some parts of the last layer read the positions of the answer only."""
    per_layer: float = 0.0
    """Independent of tokens, such as bf16 copies of trained weights."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters by part, and bytes of one layer's work in the model's precision."""

    layers: tuple[LayerSize, ...]
    """Lowest first."""
    embedding: int
    """Parameters below the layers."""
    final: int
    """Parameters of what follows the layers, such as the final norm."""
    head: int
    """Parameters of the output head; 0 when they are the embeddings' own."""
    width: int
    vocabulary: int
    trained: Saved
    """Of a layer whose weights are trained."""
    frozen: Saved
    """Of a layer that only passes gradients on."""
    cached: float
    """Bytes of keys and values per token and layer."""

    @property
    def body(self) -> int:
        """Parameters without the head's own."""
        return self.embedding + sum(layer.parameters for layer in self.layers) + self.final

    @property
    def tied(self) -> bool:
        """Whether the head reads out with the embeddings."""
        return self.head == 0


def sizes_of(branch: Branch, *, columns: int, answer: int, targets: Collection[str] | None = None) -> ModelSizes:
    """The sizes of a model, its adapters (if it has some) left out; work is measured on rows of `columns` tokens, the
    last `answer` of which are an answer.

    `targets` are the names of the linear layers that LoRA would adapt; None takes PEFT's choice, nothing where it has
    none for this architecture.
    """
    backbone = branch.backbone
    assert isinstance(backbone, CausalBackbone), "the only kind that is measured so far"
    model, body = backbone.model, backbone.body
    named = targets or LORA_TARGETS.get(model.config.model_type, ())
    layers = tuple(layer_size(layer, named) for layer in layers_of(body))
    with backbone.autocast():
        after = [p for module in modules_after_layers(body, _states(backbone, 1, 2)) for p in module.parameters()]
    head = {id(p): p.numel() for p in branch.head.linear.parameters()}
    own_head = sum(head[i] for i in head.keys() - {id(p) for p in body.parameters()})
    final = sum(p.numel() for p in {id(p): p for p in after}.values())
    whole = sum(p.numel() for name, p in body.named_parameters() if "lora_" not in name)
    return ModelSizes(
        layers=layers,
        embedding=whole - final - sum(layer.parameters for layer in layers),
        final=final,
        head=own_head,
        width=model.config.hidden_size,
        vocabulary=branch.vocabulary,
        trained=_saved(backbone, columns, answer, trained=True),
        frozen=_saved(backbone, columns, answer, trained=False),
        cached=_cached(backbone, columns),
    )


def adapted_layers(layer: nn.Module, targets: Collection[str]) -> list[Any]:
    """The linear layers in a layer without adapters that bear one of these names."""
    return [module for name, module in linear_layers(layer).items() if name.split(".")[-1] in targets]


def layer_size(layer: nn.Module, targets: Collection[str]) -> LayerSize:
    """The parameters of one layer, and what adapters on the linear layers of these names would add to."""
    linear = [
        (name.removesuffix(".base_layer").split(".")[-1], module)
        for name, module in linear_layers(layer).items()
        if "lora_" not in name
    ]
    # Conv1D stores its weight as (in, out), Linear as (out, in).
    shapes = [
        module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        for name, module in linear
        if name in targets
    ]
    return LayerSize(
        parameters=sum(p.numel() for name, p in layer.named_parameters() if "lora_" not in name),
        matrices=sum(p.numel() for _, module in linear for p in module.parameters()),
        inputs=sum(shape[0] for shape in shapes),
        outputs=sum(shape[1] for shape in shapes),
    )


def _states(backbone: CausalBackbone, rows: int, columns: int) -> Tensor:
    """Random input states_BTD of some rows."""
    generator = torch.Generator().manual_seed(0)
    states_BTD = torch.randn(rows, columns, backbone.model.config.hidden_size, generator=generator)
    return states_BTD.to(backbone.device)


def _top_layer_alone(backbone: CausalBackbone, *, trained: bool) -> tuple[Any, nn.Module]:
    """(a body of one layer, that layer): a copy of the model's top layer, in fp32 or as a frozen one is stored."""
    count = len(layers_of(backbone.body))
    body = slice_layers(backbone.body, count - 1, count)
    layers = layers_of(body)
    layers[0] = without_adapters(copy.deepcopy(layers[0])).float().requires_grad_(trained)
    if not trained and backbone.precision == "bf16":
        store_matrices_in_bf16(layers[0])
    return body, layers[0]


def without_adapters(module: nn.Module) -> nn.Module:
    """The module with every adapted layer replaced by what it adapts."""
    for name, child in module.named_children():
        setattr(module, name, without_adapters(getattr(child, "base_layer", child)))
    return module


def _saved(backbone: CausalBackbone, columns: int, answer: int, *, trained: bool) -> Saved:
    body, layer = _top_layer_alone(backbone, trained=trained)
    parts = position_wise_parts(body) if backbone.position_wise_parts else []
    per_token: list[float] = []
    for first in (0, columns - answer):
        read = [_bytes_saved(backbone, body, layer, parts if first else [], rows, columns, first) for rows in (1, 2)]
        per_token.append((read[1] - read[0]) / columns)
        if not first:
            constant = max(0.0, 2.0 * read[0] - read[1])
    return Saved(per_token[0], per_token[1], constant)


def _bytes_saved(
    backbone: CausalBackbone,
    body: Any,
    layer: nn.Module,
    parts: Sequence[nn.Module],
    rows: int,
    columns: int,
    first: int,
) -> int:
    """Bytes of all storages that one forward pass of the layer leaves to autograd, its parameters' left out.

    Of its `parts` at the positions from `first` on only.
    """
    states_BTD = _states(backbone, rows, columns)
    row_N, column_N = torch.ones(rows, columns - first, device=backbone.device).nonzero(as_tuple=True)
    calls: list[tuple[Any, Any]] = []
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    try:
        with torch.enable_grad(), backbone.autocast():
            body(inputs_embeds=states_BTD.requires_grad_(), use_cache=False)
    finally:
        handle.remove()
    ((args, kwargs),) = calls
    # The first pass has ended its autocast, and with it the bf16 copies of weights: this one makes its own.
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), backbone.autocast(), only_at_positions(parts, row_N, column_N + first), saving:
        layer(*args, **kwargs)
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in own)


@torch.no_grad()
def _cached(backbone: CausalBackbone, columns: int) -> float:
    """Bytes of keys and values per token, of the top layer."""
    body, _ = _top_layer_alone(backbone, trained=False)
    cache = RoomyCache(len(layers_of(backbone.body)), columns)
    with backbone.autocast():
        body(inputs_embeds=_states(backbone, 1, columns), use_cache=True, **cache_argument(body, cache))
    filled: Sequence[Any] = [layer for layer in cache.layers if layer.is_initialized]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in filled) / columns
