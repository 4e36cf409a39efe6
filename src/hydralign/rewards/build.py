"""Reward terms out of their configs: functions imported, classifiers and reward models loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hydralign.config import rewards as config
from hydralign.rewards.classifier import ClassifierReward
from hydralign.rewards.combine import RewardTerm, unique_names
from hydralign.rewards.functions import load_function
from hydralign.rewards.reward_model import RewardModel


def build_terms(configs: Sequence[config.RewardTerm], device: torch.device | str) -> tuple[RewardTerm, ...]:
    """One term per config, models on `device`. Names default to the function's, label's or folder's name.

    Raises RewardError or ModelError, whatever the part at fault raises.
    """
    built = [_reward(term, device) for term in configs]
    names = unique_names(term.name or own for term, (own, _) in zip(configs, built, strict=True))
    return tuple(
        RewardTerm(name, reward, term.weight, term.minus_reference)
        for name, (_, reward), term in zip(names, built, configs, strict=True)
    )


def _reward(term: config.RewardTerm, device: torch.device | str) -> tuple[str, Callable[..., Any]]:
    """(its own name, the reward)."""
    match term:
        case config.FunctionRewardConfig():
            return term.function.rpartition(":")[2], load_function(term.function)
        case config.ClassifierRewardConfig():
            settings = term.model_dump(include={"label", "output", "text", "activation", "batch_size"})
            reward = ClassifierReward.from_folder(term.path, **settings, device=device)
            return reward.label, reward
        case config.ModelRewardConfig():
            return Path(term.path).name, RewardModel.from_folder(term.path, batch_size=term.batch_size, device=device)
