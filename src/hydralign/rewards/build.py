"""Reward terms out of their configs: functions imported, classifiers and reward models loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    names = unique_names(term.name or part.name for term, part in zip(configs, built, strict=True))
    return tuple(
        RewardTerm(name, part.reward, term.weight, term.minus_reference)
        for name, part, term in zip(names, built, configs, strict=True)
    )


@dataclass(frozen=True)
class _Built:
    name: str
    reward: Callable[..., Any]


def _reward(term: config.RewardTerm, device: torch.device | str) -> _Built:
    match term:
        case config.FunctionRewardConfig():
            return _Built(term.function.rpartition(":")[2], load_function(term.function))
        case config.ClassifierRewardConfig():
            reward = ClassifierReward.from_folder(
                term.path,
                label=term.label,
                output=term.output,
                text=term.text,
                activation=term.activation,
                batch_size=term.batch_size,
                device=device,
            )
            return _Built(reward.label, reward)
        case config.ModelRewardConfig():
            return _Built(
                Path(term.path).name, RewardModel.from_folder(term.path, batch_size=term.batch_size, device=device)
            )
