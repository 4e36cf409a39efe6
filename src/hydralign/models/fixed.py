"""Parameters that an architecture declares fixed, such as a router's correction bias or a sinusoidal position table.

An architecture says so by `requires_grad=False` on a new model. transformers forgets it when it loads weights, and
weight decay alone would then move them. So a model of the same class is built without memory, and asked.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

WRAPPINGS = {"base_layer", "original_module", "modules_to_save"}
"""Names that PEFT puts into the path of a parameter."""


def freeze_fixed(model: Any) -> None:
    """Set `requires_grad` to False, in place, for every parameter that the model's architecture declares fixed.

    A copy of a module that a trained adapter holds keeps what the module declares.
    """
    fixed = fixed_names(model)
    if fixed:
        for name, parameter in model.named_parameters():
            if _plain_name(name) in fixed:
                parameter.requires_grad_(False)


def fixed_names(model: Any) -> frozenset[str]:
    """Names of the parameters that do not learn in a new model of this class and config; none where that is unknown."""
    kind: Any = type(model)  # any class is hashable, which type checkers do not know of type[Any]
    return _fixed_names(kind, _Key(model.config))


class _Key:
    """A config that is equal to others with the same content."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.text = f"{type(config).__qualname__} {config.to_json_string(use_diff=False)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@cache
def _fixed_names(kind: Any, key: _Key) -> frozenset[str]:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            new = kind(copy.deepcopy(key.config))
    except Exception:  # A class of somebody else's may need more than a config; then nothing is known of it.
        return frozenset()
    return frozenset(name for name, parameter in new.named_parameters() if not parameter.requires_grad)


def _plain_name(name: str) -> str:
    """The parameter's name in the model without adapters."""
    parts = name.split(".")
    plain: list[str] = []
    for before, part in zip(["", *parts], parts, strict=False):
        # An adapter's own name follows modules_to_save.
        if part not in WRAPPINGS and before != "modules_to_save":
            plain.append(part)
    return ".".join(plain)
