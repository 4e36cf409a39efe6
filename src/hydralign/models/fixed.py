"""Parameters that an architecture declares fixed, such as a router's correction bias or a sinusoidal position table.

An architecture says so by `requires_grad=False` on a new model. transformers forgets it when it loads weights, and
weight decay alone would then move them. So a model of the same class is built without memory, and asked.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

WRAPPINGS = {"base_layer", "original_module", "modules_to_save"}
"""Names that PEFT puts into the path of a parameter."""

_known: dict[tuple[Any, ...], frozenset[str]] = {}
"""Names of fixed parameters by the class of the model and the content of its config."""


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
    key = type(model), type(model.config), model.config.to_json_string(use_diff=False)
    if key not in _known:
        _known[key] = _names_in_new_model(type(model), model.config)
    return _known[key]


def _names_in_new_model(kind: Any, config: Any) -> frozenset[str]:
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            new = kind(copy.deepcopy(config))
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
