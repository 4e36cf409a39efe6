"""The relative position bias of T5 and its kin, which one layer of a stack owns and hands to those above it.

An upper layer that is called without it takes zeros and says nothing, so a cut through the stack has to bring it along.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hydralign.models.backbones.slicing import layers_of


def shared_position_bias(stack: Any, positions: int) -> Tensor | None:
    """bias_1HRR of a decoder's self-attention over so many positions, which its first layer alone can make.

    None where layers need none from below: they make their own, as in UMT5, or positions are embedded, as in BART.
    """
    owners = [_owner(layer) for layer in layers_of(stack)]
    if owners[0] is None or (len(owners) > 1 and owners[1] is not None):
        return None
    return owners[0].compute_bias(positions, positions, device=owners[0].relative_attention_bias.weight.device)


def _owner(layer: Any) -> Any:
    """The attention of the layer that makes a bias from distances; None where there is none."""
    return next((part for part in layer.modules() if getattr(part, "has_relative_attention_bias", False)), None)
