"""Where rotary positions begin to depend on the longest row of a batch.

Two kinds (`longrope`, of Phi-3 for instance, and `dynamic`) choose their frequencies by the largest position of the
whole batch. Beyond a length that the config names, a row's log-probabilities would change with the rows beside it, and
a cache filled before that length would hold keys of other frequencies. Up to it they are like all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def rope_limit(model: Any) -> int | None:
    """Longest sequence in tokens that reads the same whatever stands beside it; None where rotary positions set none.

    The kinds and their lengths stand in the config's `rope_parameters`, in some families once per type of layer.
    """
    config = model.config.get_text_config()
    limits: list[int] = []
    for parameters in _kinds(getattr(config, "rope_parameters", None)):
        kind = str(parameters.get("rope_type", parameters.get("type", "")))
        known = (parameters.get("original_max_position_embeddings"), getattr(config, "max_position_embeddings", None))
        if kind == "longrope":
            limits += [limit for limit in known if isinstance(limit, int)][:1]
        elif "dynamic" in kind and isinstance(known[1], int):
            limits.append(known[1])
    return min(limits, default=None)


def explain_rope_limit(model: Any) -> str:
    """A clause for error messages about a context that rotary positions end; empty for another model."""
    limit = rope_limit(model)
    if limit is None:
        return ""
    return (
        f": beyond {limit} tokens its rotary positions (longrope or dynamic) depend on the longest row of a batch, so "
        "a row's log-probabilities would change with the rows beside it"
    )


def _kinds(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of every kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    if "rope_type" in parameters or "type" in parameters:
        yield parameters
    for nested in parameters.values():
        yield from _kinds(nested)
