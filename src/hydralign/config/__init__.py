"""Recipes as frozen, strict configs. Imports nothing heavy."""

from hydralign.config.base import Config
from hydralign.config.data import DataConfig, DemonstrationSourceConfig, PromptSourceConfig, SourceConfig
from hydralign.config.loading import (
    dump_config,
    dump_recipe,
    load_config,
    load_recipe,
    parse_overrides,
    read_config,
    resolved_recipe,
)
from hydralign.config.model import FullForm, HydraForm, LoraForm, ModelConfig, NewModelConfig
from hydralign.config.ppo import PPOConfig
from hydralign.config.recipe import Recipe
from hydralign.config.show import batch_arithmetic, describe, diff

__all__ = [
    "Config",
    "DataConfig",
    "DemonstrationSourceConfig",
    "FullForm",
    "HydraForm",
    "LoraForm",
    "ModelConfig",
    "NewModelConfig",
    "PPOConfig",
    "PromptSourceConfig",
    "Recipe",
    "SourceConfig",
    "batch_arithmetic",
    "describe",
    "diff",
    "dump_config",
    "dump_recipe",
    "load_config",
    "load_recipe",
    "parse_overrides",
    "read_config",
    "resolved_recipe",
]
