"""hydralign teaches language models from human feedback and proves with error bars that it worked.

The names below load on first use, so that `import hydralign` answers at once and torch waits until it is needed.
A new public name is one line in `_HOMES` and the same import for type checkers above it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hydralign import reproducible as _reproducible  # noqa: F401  (acts on import, before anything loads torch)

if TYPE_CHECKING:
    __version__: str
    from hydralign.config.loading import load_recipe as load_recipe
    from hydralign.config.model import FullForm as FullForm
    from hydralign.config.model import HydraForm as HydraForm
    from hydralign.config.model import LoraForm as LoraForm
    from hydralign.config.recipe import Recipe as Recipe
    from hydralign.data import PromptStream as PromptStream
    from hydralign.data import load_prompts as load_prompts
    from hydralign.errors import HydralignError as HydralignError
    from hydralign.evaluation.statistics import compare_paired as compare_paired
    from hydralign.generation import sample as sample
    from hydralign.methods.advantages import GAE as GAE
    from hydralign.methods.advantages import GroupNormalised as GroupNormalised
    from hydralign.methods.advantages import LeaveOneOut as LeaveOneOut
    from hydralign.methods.advantages import estimate as estimate
    from hydralign.methods.policy_update import LossWeights as LossWeights
    from hydralign.methods.policy_update import update as update
    from hydralign.models import load_policy as load_policy
    from hydralign.rewards.combine import RewardTerm as RewardTerm
    from hydralign.rollout import collect as collect
    from hydralign.runs.recipes import RunResult as RunResult
    from hydralign.runs.recipes import run_recipe as run_recipe
    from hydralign.runs.recipes import run_section as run_section
    from hydralign.training.optimizer import make_optimizer as make_optimizer
    from hydralign.types import Advantages as Advantages
    from hydralign.types import Experience as Experience
    from hydralign.types import Prompt as Prompt
    from hydralign.types import Rollout as Rollout
    from hydralign.types import SamplingParams as SamplingParams
    from hydralign.types import TokenBatch as TokenBatch

_HOMES = {
    "GAE": "hydralign.methods.advantages",
    "GroupNormalised": "hydralign.methods.advantages",
    "LeaveOneOut": "hydralign.methods.advantages",
    "Advantages": "hydralign.types",
    "Experience": "hydralign.types",
    "FullForm": "hydralign.config.model",
    "HydraForm": "hydralign.config.model",
    "HydralignError": "hydralign.errors",
    "LoraForm": "hydralign.config.model",
    "LossWeights": "hydralign.methods.policy_update",
    "Prompt": "hydralign.types",
    "PromptStream": "hydralign.data",
    "Recipe": "hydralign.config.recipe",
    "RewardTerm": "hydralign.rewards.combine",
    "Rollout": "hydralign.types",
    "TokenBatch": "hydralign.types",
    "RunResult": "hydralign.runs.recipes",
    "SamplingParams": "hydralign.types",
    "collect": "hydralign.rollout",
    "compare_paired": "hydralign.evaluation.statistics",
    "estimate": "hydralign.methods.advantages",
    "load_policy": "hydralign.models",
    "load_prompts": "hydralign.data",
    "load_recipe": "hydralign.config.loading",
    "make_optimizer": "hydralign.training.optimizer",
    "run_recipe": "hydralign.runs.recipes",
    "run_section": "hydralign.runs.recipes",
    "sample": "hydralign.generation",
    "update": "hydralign.methods.policy_update",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # here: it takes time, and few ask

        return version("hydralign")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
