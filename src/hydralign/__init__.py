"""hydralign teaches language models from human feedback and proves with error bars that it worked.

The names below load on first use, so that `import hydralign` answers at once and torch waits until it is needed.
A new public name is one line in `_HOMES` and the same import for type checkers above it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydralign.config.loading import load_recipe as load_recipe
    from hydralign.config.recipe import Recipe as Recipe
    from hydralign.errors import HydralignError as HydralignError
    from hydralign.types import Estimates as Estimates
    from hydralign.types import Experience as Experience
    from hydralign.types import Prompt as Prompt
    from hydralign.types import Rollout as Rollout
    from hydralign.types import Rows as Rows
    from hydralign.types import SamplingPlan as SamplingPlan

_HOMES = {
    "Estimates": "hydralign.types",
    "Experience": "hydralign.types",
    "HydralignError": "hydralign.errors",
    "Prompt": "hydralign.types",
    "Recipe": "hydralign.config.recipe",
    "Rollout": "hydralign.types",
    "Rows": "hydralign.types",
    "SamplingPlan": "hydralign.types",
    "load_recipe": "hydralign.config.loading",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
