"""Every kind of section, in the order in which a recipe runs them. A new method is one entry here."""

from __future__ import annotations

from hydralign.config import PPOConfig, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.reward import RewardConfig
from hydralign.config.sft import SFTConfig
from hydralign.runs.compare import run_compare
from hydralign.runs.plans import plan_compare, plan_ppo, plan_reward, plan_sft
from hydralign.runs.ppo import run_ppo
from hydralign.runs.preflight import check_compare, check_ppo, check_reward, check_sft
from hydralign.runs.reward import data_kind, run_reward
from hydralign.runs.sft import run_sft
from hydralign.runs.steps import Section, Step


def _sft_reads(_: Recipe, config: SFTConfig) -> list[str]:
    return [] if config.data else ["data.demonstrations"]


def _reward_reads(_: Recipe, config: RewardConfig) -> list[str]:
    return [] if config.data else [f"data.{data_kind(config)}"]


def _ppo_reads(_: Recipe, config: PPOConfig) -> list[str]:
    # The tokenizer of a new model is trained on demonstrations, or else on prompts.
    new = config.model is not None and config.model.new is not None
    return ["data.prompts", "data.demonstrations"] if new else ["data.prompts"]


def _compare_reads(recipe: Recipe, config: CompareConfig) -> list[str]:
    left_open = {"ppo.rewards": not config.score, "ppo.sampling": config.sampling is None}
    return ["data.prompts", *(key for key, is_open in left_open.items() if is_open and recipe.ppo)]


SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        Section("sft", _sft_reads, check_sft, plan_sft, run_sft, "language model", "epochs"),
        Section("reward", _reward_reads, check_reward, plan_reward, run_reward, "classifier", "epochs"),
        Section("ppo", _ppo_reads, check_ppo, plan_ppo, run_ppo, "language model", "steps"),
        Section(
            "compare",
            _compare_reads,
            check_compare,
            plan_compare,
            run_compare,
            wording=("title", "notes"),
            reports=("report.json", "report.html"),
        ),
    )
}
"""By name, in order."""


def all_steps(recipe: Recipe) -> list[Step]:
    """Every step of the recipe, in the order in which they run."""
    return [step for section in SECTIONS.values() for step in section.steps(recipe)]
