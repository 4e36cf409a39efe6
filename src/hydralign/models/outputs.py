"""Whether a model's outputs are numbers, asked before they are compared: NaN says nothing about an architecture."""

from __future__ import annotations

import math
from typing import Any

from hydralign.errors import ModelError
from hydralign.models.folders.weights import require_finite_weights


def require_finite_outputs(largest: float, model: Any) -> None:
    """Raise ModelError unless `largest`, the largest size among a model's outputs for a short text, is finite.

    Names the weight that is not finite, or else the largest, and where to look for the cause.
    """
    if math.isfinite(largest):
        return
    name = type(model).__name__
    require_finite_weights(model, name)
    sizes = {key: float(weight.detach().abs().max()) for key, weight in model.named_parameters() if weight.numel()}
    most = max(sizes, key=lambda key: sizes[key])
    raise ModelError(
        f"{name}: its outputs for a short text are NaN or infinite, though its weights are not (the largest, in "
        f"{most}, is {sizes[most]:.2g}), so every loss would be. Most likely its weights are too large for fp32, or a "
        "number in its config.json, such as the epsilon of its layer norms, is wrong. Restore config.json, and save "
        "or download the weights again."
    )


def allowed_gap(precision: str, scale: float) -> float:
    """How far two ways to the same numbers, the largest of size `scale`, may lie apart by rounding."""
    return (1e-3 if precision == "fp32" else 3e-2) * max(1.0, scale)
