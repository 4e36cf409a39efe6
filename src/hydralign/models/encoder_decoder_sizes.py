"""How large an encoder–decoder is: parameters of both stacks, and what their layers keep while they work.

Parameters are counted. What autograd saves is measured on copies of a stack's two lowest layers: the second adds what
every further layer does, the first owns what all of them share, such as T5's position bias. Prompts are measured
with padding, as most batches have it: T5 then holds one bias per row, head and pair of positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone, encoder_mask
from hydralign.models.backbones.slicing import layers_of, modules_after_layers, slice_layers
from hydralign.models.branch import Branch
from hydralign.models.kernels.cache import RoomyCache
from hydralign.models.precision import store_matrices_in_bf16
from hydralign.models.sizes import LayerSize, adapted_layers, layer_size, without_adapters
from hydralign.models.versions import LORA_TARGETS, DynamicCache, EncoderDecoderCache


@dataclass(frozen=True)
class StackSaved:
    """Bytes that autograd keeps of a stack for the backward pass, parameters not counted."""

    per_layer: float
    """Of one row and one layer."""
    besides: float
    """Of one row, beside its layers: what the first layer makes for all, the final norm."""
    constant: float
    """Of one layer, independent of rows, such as bf16 copies of trained weights."""


@dataclass(frozen=True)
class StackSizes:
    """Parameters of an encoder or a decoder, and bytes of its work in the model's precision."""

    layers: tuple[LayerSize, ...]
    """Lowest first."""
    final: int
    """Parameters of what follows the layers."""
    trained: StackSaved
    """All of it is trained."""
    top: StackSaved
    """Its layers are trained, and what they share from below is not."""
    adapted: StackSaved
    """The inputs of its adapted layers are kept."""
    frozen: StackSaved
    """Gradients only pass."""

    @property
    def matrices(self) -> int:
        """Parameters in linear layers."""
        return sum(layer.matrices for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Of all layers and what follows them."""
        return sum(layer.parameters for layer in self.layers) + self.final


@dataclass(frozen=True)
class EncoderDecoderSizes:
    """Parameters by part, and bytes of work on prompts and answers of the measured lengths."""

    encoder: StackSizes
    decoder: StackSizes
    embedding: int
    """Parameters below the layers of both stacks."""
    head: int
    """Parameters of the output head; 0 when they are the embeddings' own."""
    width: int
    vocabulary: int
    cached_prompt: float
    """Bytes of a layer's keys and values of one prompt token."""
    cached_answer: float
    """The same of one answer token."""

    @property
    def whole(self) -> int:
        """Parameters of the whole model."""
        return self.embedding + self.encoder.parameters + self.decoder.parameters + self.head

    @property
    def matrices(self) -> int:
        """Parameters in linear layers of both stacks."""
        return self.encoder.matrices + self.decoder.matrices


def encoder_decoder_sizes_of(
    branch: Branch, *, prompt: int, answer: int, targets: Collection[str] | None = None
) -> EncoderDecoderSizes:
    """The sizes of a model, its adapters (if it has some) left out; work is measured on prompts and answers of so many
    tokens. `targets` are as in `sizes_of`.
    """
    backbone = branch.backbone
    assert isinstance(backbone, EncoderDecoderBackbone), "an encoder–decoder"
    model = backbone.model
    named = targets or LORA_TARGETS.get(model.config.model_type, ())
    encoder = _stack_sizes(backbone, backbone.encoder, named, columns=prompt)
    decoder = _stack_sizes(backbone, backbone.decoder, named, columns=answer, prompt=prompt)
    parameters = {id(p): p.numel() for name, p in model.named_parameters() if "lora_" not in name}
    head = {id(p) for p in branch.head.linear.parameters()}
    stacks = {id(p) for stack in (backbone.encoder, backbone.decoder) for p in stack.parameters()}
    own_head = sum(parameters[i] for i in head - stacks - {id(model.get_input_embeddings().weight)})
    prompt_bytes, answer_bytes = _cached(backbone, prompt, answer)
    return EncoderDecoderSizes(
        encoder=encoder,
        decoder=decoder,
        embedding=sum(parameters.values()) - own_head - encoder.parameters - decoder.parameters,
        head=own_head,
        width=model.config.hidden_size,
        vocabulary=branch.vocabulary,
        cached_prompt=prompt_bytes,
        cached_answer=answer_bytes,
    )


def _stack_sizes(
    backbone: EncoderDecoderBackbone, stack: Any, targets: Collection[str], *, columns: int, prompt: int = 0
) -> StackSizes:
    with backbone.autocast():
        after = modules_after_layers(stack, _states(backbone, 1, 2))
    final = {id(p): p.numel() for module in after for p in module.parameters()}

    def saved(learns: Callable[[Any], None], *, rounded: bool = False) -> StackSaved:
        return _saved(backbone, stack, learns, columns=columns, prompt=prompt, rounded=rounded)

    def adapt_named(layer: nn.Module) -> None:
        layer.requires_grad_(False)
        for module in adapted_layers(layer, targets):
            module.weight.requires_grad_(True)

    return StackSizes(
        layers=tuple(layer_size(layer, targets) for layer in layers_of(stack)),
        final=sum(final.values()),
        trained=saved(lambda layer: layer.requires_grad_(True)),
        top=saved(_train_all_but_look_ups),
        adapted=saved(adapt_named),
        frozen=saved(lambda layer: layer.requires_grad_(False), rounded=True),
    )


def _train_all_but_look_ups(layer: nn.Module) -> None:
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not isinstance(module, nn.Embedding))


def _states(backbone: EncoderDecoderBackbone, rows: int, columns: int) -> Tensor:
    """Random states_BTD of some rows."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, backbone.model.config.hidden_size, generator=generator).to(backbone.device)


def _saved(
    backbone: EncoderDecoderBackbone,
    stack: Any,
    learns: Callable[[Any], None],
    *,
    columns: int,
    prompt: int,
    rounded: bool,
) -> StackSaved:
    """What one and two layers leave to autograd, of one row and of two."""
    bytes_of = {
        (layers, rows): _bytes_saved(backbone, stack, layers, learns, rows, columns, prompt, rounded)
        for layers in (1, 2)
        for rows in (1, 2)
    }
    by_rows = {layers: bytes_of[layers, 2] - bytes_of[layers, 1] for layers in (1, 2)}
    constant = {layers: 2 * bytes_of[layers, 1] - bytes_of[layers, 2] for layers in (1, 2)}
    layer = by_rows[2] - by_rows[1]
    return StackSaved(layer, max(0.0, by_rows[1] - layer), max(0.0, constant[2] - constant[1]))


def _bytes_saved(
    backbone: EncoderDecoderBackbone,
    stack: Any,
    layers: int,
    learns: Callable[[Any], None],
    rows: int,
    columns: int,
    prompt: int,
    rounded: bool,
) -> int:
    """Bytes of all storages that one forward pass of the lowest layers leaves to autograd, parameters left out."""
    body = slice_layers(stack, 0, min(layers, len(layers_of(stack))))
    held = layers_of(body)
    for number in range(layers):
        layer = without_adapters(copy.deepcopy(held[min(number, len(held) - 1)])).float()
        learns(layer)
        if rounded and backbone.precision == "bf16":
            store_matrices_in_bf16(layer)
        if number < len(held):
            held[number] = layer
        else:
            held.append(layer)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    # As of a row beside a longer one.
    mask = encoder_mask(torch.full((rows,), (prompt or columns) - 1), prompt or columns, backbone.device)
    more: dict[str, Any] = {"attention_mask": mask}
    if prompt:
        encoder_BQD = _states(backbone, rows, prompt).requires_grad_()
        more = {"encoder_hidden_states": encoder_BQD, "encoder_attention_mask": mask}
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), backbone.autocast(), saving:
        made_of = body(inputs_embeds=_states(backbone, rows, columns).requires_grad_(), **more, **_uncached(stack))
    own = {p.untyped_storage().data_ptr() for p in body.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del made_of
    return sum(size for place, size in storages.items() if place not in own)


def _uncached(stack: Any) -> dict[str, bool]:
    return {"use_cache": False} if getattr(stack.config, "is_decoder", False) else {}


@torch.no_grad()
def _cached(backbone: EncoderDecoderBackbone, prompt: int, answer: int) -> tuple[float, float]:
    """Bytes of keys and values per prompt token and per answer token, of one layer."""
    cache = EncoderDecoderCache(RoomyCache(len(layers_of(backbone.decoder)), answer), DynamicCache())
    encoder_BQD, inputs_BRD = _states(backbone, 1, prompt), _states(backbone, 1, answer)
    with backbone.autocast():
        backbone.read(backbone.decoder, inputs_BRD, encoder_BQD, torch.tensor([prompt]), cache=cache)
    size = [
        sum(layer.keys.nbytes + layer.values.nbytes for layer in part.layers)
        for part in (cache.cross_attention_cache, cache.self_attention_cache)
    ]
    layers = len(layers_of(backbone.decoder))
    return size[0] / (prompt * layers), size[1] / (answer * layers)
