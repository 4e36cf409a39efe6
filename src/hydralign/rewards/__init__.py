"""Rewards: one protocol for functions, classifiers and reward models; their sum, checked; their scale.

Ordinary use is two calls: `build_terms(recipe.ppo.rewards, device)` once, `score_rollout(terms, ...)` per rollout.
"""

from hydralign.models.heads.score import scores
from hydralign.rewards.build import build_terms
from hydralign.rewards.classifier import ClassifierReward
from hydralign.rewards.combine import RewardTerm, require_applied, score_rollout, unique_names
from hydralign.rewards.fake import LengthReward, TokenShareReward
from hydralign.rewards.functions import load_function
from hydralign.rewards.normalise import RunningMoments, shape_scores
from hydralign.rewards.protocol import Reward
from hydralign.rewards.reward_model import RewardModel, encode

__all__ = [
    "ClassifierReward",
    "LengthReward",
    "Reward",
    "RewardModel",
    "RewardTerm",
    "RunningMoments",
    "TokenShareReward",
    "build_terms",
    "encode",
    "load_function",
    "require_applied",
    "score_rollout",
    "scores",
    "shape_scores",
    "unique_names",
]
