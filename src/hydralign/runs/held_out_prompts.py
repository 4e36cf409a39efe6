"""Held-out prompts, which ppo and compare answer before and after: which they are, and their answers on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hydralign.config import Recipe
from hydralign.config.data import PromptSourceConfig
from hydralign.data import DataSet, choose_rows
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, DataError
from hydralign.evaluation.comparison import Comparison, fact_sentence
from hydralign.evaluation.held_out import Answers
from hydralign.progress import say
from hydralign.runs.section import load_or_measure
from hydralign.types import Prompt


def required_prompts(recipe: Recipe) -> PromptSourceConfig:
    """The prompts' source. Raises ConfigError when the recipe names none."""
    if recipe.data.prompts is None:
        raise ConfigError("The recipe has no `data.prompts`: there is nothing to answer. Name a source of prompts.")
    return recipe.data.prompts


def choose_prompts(prompts: DataSet[Prompt], count: int, *, at_least: int) -> tuple[Prompt, ...]:
    """`count` held-out prompts, or all that there are; raises DataError with the reasons when they are too few."""
    held_out = choose_rows(prompts.held_out, count)
    if len(held_out) < at_least:
        raise DataError(
            f"{len(held_out)} prompts are held out, at least {at_least} are needed: whether training helped could not "
            "be distinguished from chance. Set data.prompts.held_out, such as {by: hash, percent: 5}, or name more "
            f"prompts.\n{prompts.report.describe()}"
        )
    return held_out


def print_comparison(comparison: Comparison) -> None:
    """The result in plain sentences."""
    for difference in comparison.metrics:
        say(difference.sentence())
    for fact in comparison.facts:
        say(fact_sentence(fact))


def load_or_measure_answers(path: Path, rows: str, make: Callable[[], Answers], processes: Distributed) -> Answers:
    """`load_or_measure`, for answers to held-out prompts."""

    def load(file: Path) -> tuple[str, Answers]:
        answers = Answers.load(file)
        return answers.rows, answers

    return load_or_measure(path, rows, make, processes, load=load, save=lambda file, answers: answers.save(file))


def prompt_preview(prompt: Prompt, source: PromptSourceConfig) -> str:
    """One prompt as the policy will read it: text, then ids."""
    cut = f"cut to {source.cut.min_tokens}-{source.cut.max_tokens} tokens" if source.cut else "whole"
    return f"{prompt.text!r} ({cut}; {len(prompt.token_ids)} tokens: {list(prompt.token_ids[:12])})"
