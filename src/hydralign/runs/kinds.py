"""Every kind of section, in the order in which a recipe runs them. A new method is one entry here."""

from __future__ import annotations

from hydralign.config import Recipe
from hydralign.runs.compare import run_compare
from hydralign.runs.plans import plan_compare, plan_ppo, plan_reward, plan_sft
from hydralign.runs.ppo import run_ppo
from hydralign.runs.preflight import check_compare, check_ppo, check_reward, check_sft
from hydralign.runs.reward import run_reward
from hydralign.runs.sft import run_sft
from hydralign.runs.steps import Section, Step

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        Section("sft", ("demonstrations",), check_sft, plan_sft, run_sft),
        Section("reward", ("comparisons", "labelled"), check_reward, plan_reward, run_reward),
        Section("ppo", ("prompts",), check_ppo, plan_ppo, run_ppo),
        Section("compare", ("prompts",), check_compare, plan_compare, run_compare),
    )
}
"""By name, in order."""


def all_steps(recipe: Recipe) -> list[Step]:
    """Every step of the recipe, in the order in which they run."""
    return [step for section in SECTIONS.values() for step in section.steps(recipe)]
