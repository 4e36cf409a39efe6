"""Cut a causal model between two of its layers, whatever its architecture.

A part is the model's own body with a shorter list of layers (and a config that says so): it shares every weight with
the model and builds positions, masks and rotary angles by the model's own code. What enters and leaves at a cut is
taken by hooks that live for one call, so the model itself is never changed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import HydralignError, ModelError, describe_error
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.folders.loading import context_of
from hydralign.models.outputs import require_finite_outputs

ARCHITECTURE_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an architecture raises that is not built the way a caller takes for granted."""
UNCUT = "Use model.form: {type: full} or {type: lora} without unfrozen_layers."
"""The way out where a model cannot be cut."""


@contextmanager
def named_architecture_errors(what: str, why: str) -> Iterator[None]:
    """Turn what an architecture raises that is built in another way into a ModelError: `what`, the cause, `why`."""
    try:
        yield
    except ARCHITECTURE_ERRORS as error:
        if is_out_of_memory(error) or isinstance(error, HydralignError):
            raise
        raise ModelError(f"{what} ({describe_error(error)}): {why}") from error


def stack_of(model: Any) -> Any:
    """The stack of layers that a model can be cut through: its body, or of an encoder–decoder the decoder."""
    return model.get_decoder() if model.config.is_encoder_decoder else model.base_model


def layer_path(body: nn.Module) -> str:
    """The dotted name of the body's list of layers. Raises ModelError when there is not exactly one."""
    config: Any = body.config
    count = config.get_text_config().num_hidden_layers
    lists = {name: len(module) for name, module in body.named_modules() if isinstance(module, nn.ModuleList)}
    # A decoder's config may name the layers of its encoder; its own are the only list around all others.
    found = [name for name, length in lists.items() if length == count or config.is_encoder_decoder]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise ModelError(
            f"{type(body).__name__} has {len(outermost)} lists of {count} layers: which are the lowest, and so where "
            f"to cut it and what to freeze, is unclear. {UNCUT} For a classifier use freeze_layers 0 too, and with "
            "adapters precision fp32."
        )
    return outermost[0]


def layers_of(body: nn.Module) -> nn.ModuleList:
    """The body's layers, lowest first."""
    layers = body.get_submodule(layer_path(body))
    assert isinstance(layers, nn.ModuleList)
    return layers


def slice_layers(body: Any, first: int, last: int, **settings: Any) -> Any:
    """A body that runs layers `first` to `last - 1` only, between the same embedding and final norm.

    Every module is shared but those that hold the list. `settings` replace entries of the part's config.
    """
    owners = layer_path(body).split(".")
    config = _shortened(body.config, first, last)
    for name, value in settings.items():
        setattr(config, name, value)
    top = current = _shell(body, config)
    for name in owners[:-1]:
        current._modules[name] = _shell(current._modules[name], config)
        current = current._modules[name]
    current._modules[owners[-1]] = nn.ModuleList(current._modules[owners[-1]][first:last])
    return top


def modules_after_layers(body: Any, states_BTD: Tensor) -> list[nn.Module]:
    """The body's modules that run after its last layer, such as the final norm; found by running it on some states."""
    layers = layers_of(body)
    inside = {id(module) for module in layers.modules()}
    called: list[nn.Module] = []
    outside = [m for m in body.modules() if id(m) not in inside and any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(lambda module, *_: called.append(module)) for m in outside]
    handles.append(layers[-1].register_forward_hook(lambda *_: called.clear()))
    try:
        with torch.no_grad():
            body(inputs_embeds=states_BTD, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return called


def copy_trained(body: Any) -> Any:
    """A copy of a part that shares every tensor with it but the trained ones, which are its own."""
    tensors = [*body.buffers(), *(p for p in body.parameters() if not p.requires_grad)]
    return copy.deepcopy(body, {id(tensor): tensor for tensor in tensors})


def _shell(module: Any, config: Any) -> Any:
    """A module with the same content and entries of its own: one of them can be replaced, and the config."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    if hasattr(module, "config"):
        shell.config = config
    return shell


def _shortened(config: Any, first: int, last: int) -> Any:
    """The config of a part: its number of layers, and their types. Raises ModelError where these cannot be set."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = last - first
    for name in ("layer_types", "no_rope_layers", "attention_layers"):
        kinds = getattr(config, name, None)
        if not isinstance(kinds, list) or len(kinds) != config.num_hidden_layers:
            continue
        # Some configs derive the list from the number of layers, and let nobody set it.
        if getattr(short, name, None) == kinds[first:last]:
            continue
        with named_architecture_errors(
            f"{type(config).__name__}.{name} cannot be set",
            f"a part of the model would take its layers for others. {UNCUT}",
        ):
            setattr(short, name, kinds[first:last])
    return short


@contextmanager
def replace_input(layer: nn.Module, states_BTD: Tensor, **named: Tensor | None) -> Iterator[None]:
    """Within the block the layer reads these states in place of those that it is called with; so it does arguments that
    are `named` and not None.
    """
    order = list(inspect.signature(layer.forward).parameters) if named else []
    given = {name: value for name, value in named.items() if value is not None}

    def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_place = {order.index(name): value for name, value in given.items() if order.index(name) < len(args)}
        args = tuple(by_place.get(place, value) for place, value in enumerate(args))
        kwargs = kwargs | {name: value for name, value in given.items() if order.index(name) >= len(args)}
        if args:
            return (states_BTD, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": states_BTD}

    handle = layer.register_forward_pre_hook(swap, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capture_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the states that the layer hands on within the block, one per call."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield seen
    finally:
        handle.remove()


def top_layers(top: int, count: int, kind: str, *, all_allowed: bool = False) -> range:
    """The numbers of the `top` of `count` layers of a model that messages call `kind`.

    Raises ModelError unless one is left below them, or with `all_allowed` unless there are so many.
    """
    most = count if all_allowed else count - 1
    if not 1 <= top <= most:
        too_many = "there are no more" if all_allowed else "no trunk would be left to share"
        raise ModelError(
            f"model.form.unfrozen_layers={top}, but {kind} has {count} layers: "
            f"{too_many if top > most else 'nothing would be trained'}. "
            f"{f'Use 1 to {most}, or train' if most else 'Train'} all layers: model.form {{type: full}}, or lora "
            "without unfrozen_layers."
        )
    return range(count - top, count)


@torch.no_grad()
def check_split(model: Any, top: int) -> int:
    """The number of the first of the `top` layers that can be cut off.

    Raises ModelError unless trunk and branch, one after the other, give the model's own final states, also for
    sequences longer than its sliding window (which is set to a few positions for the check).
    """
    body, name = model.base_model, type(model).__name__
    layers = top_layers(top, len(layers_of(body)), name)
    for first, last in ((0, layers.start), (layers.start, layers.stop)):
        _shortened(body.config, first, last)
    embeddings = model.get_input_embeddings()
    columns = min(12, context_of(body))
    ids_BT = torch.arange(2 * columns, device=embeddings.weight.device).view(2, columns) % embeddings.weight.shape[0]
    states_BTD = embeddings(ids_BT).float()
    narrow = {"sliding_window": 4} if getattr(body.config, "sliding_window", None) else {}
    for settings in [{}, narrow] if narrow else [{}]:
        with named_architecture_errors(
            f"{name} cannot be run in two parts", f"what stands between its layers is not known here. {UNCUT}"
        ):
            gap, scale = _gap(body, layers.start, layers.stop, states_BTD, settings)
        require_finite_outputs(scale, model)
        if not gap <= 1e-5 * max(1.0, scale):
            raise ModelError(
                f"{name} cut below its top {top} layers differs from the whole by {gap:.2g}: its layers share more "
                f"than the states that they hand on, and every log-probability would be wrong. {UNCUT}"
            )
    return layers.start


def _gap(body: Any, cut: int, end: int, states_BTD: Tensor, settings: dict[str, Any]) -> tuple[float, float]:
    """Largest difference between the whole and its two parts, and the largest final state."""
    whole = slice_layers(body, 0, end, **settings) if settings else body
    whole_BTD = whole(inputs_embeds=states_BTD, use_cache=False).last_hidden_state
    trunk, branch = slice_layers(body, 0, cut, **settings), slice_layers(body, cut, end, **settings)
    with capture_output(layers_of(trunk)[-1]) as seen:
        trunk(inputs_embeds=states_BTD, use_cache=False)
    with replace_input(layers_of(branch)[0], seen[0]):
        parts_BTD = branch(inputs_embeds=seen[0], use_cache=False).last_hidden_state
    return float((whole_BTD - parts_BTD).abs().max()), float(whole_BTD.abs().max())
