"""What a section would do, in lines to read: data, parameters, memory, one sample. Trains and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hydralign.config import PPOConfig, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.reward import Labels, RewardConfig
from hydralign.config.sft import SFTConfig
from hydralign.data.packing import TokenSequence, packed
from hydralign.loops import compare_run, ppo_run, reward_run, sft_run
from hydralign.loops.ppo import sampling_plan
from hydralign.loops.reward import Pair
from hydralign.loops.sft import max_tokens_of
from hydralign.loops.supervised import steps_of
from hydralign.processes import Processes


def plan_sft(recipe: Recipe, config: SFTConfig, processes: Processes) -> list[str]:
    """Lines about an sft section, with one sequence rendered: what is read, and what of it is learned."""
    loaded = sft_run.load_parts(recipe, config, processes)
    student = loaded.student
    rows = len(packed(loaded.train, max_tokens_of(config, student))) if config.packing else len(loaded.train)
    sample = loaded.train[0]
    return [
        loaded.describe(),
        f"steps      {steps_of(config, rows):,} of {config.batch.rows} rows, out of {rows:,}",
        *size_lines(student.trained(), student.fixed()),
        f"sample     read: {_shown(student.tokenizer, sample, 0, sample.learned_from)}",
        f"           learned: {_shown(student.tokenizer, sample, max(1, sample.learned_from), len(sample.ids))}",
    ]


def plan_reward(recipe: Recipe, config: RewardConfig, processes: Processes) -> list[str]:
    """Lines about a reward section, with one row as the scorer reads it."""
    loaded = reward_run.load_parts(recipe, config, processes)
    scorer = loaded.scorer
    copies = 1 + (config.task.crops.per_text if isinstance(config.task, Labels) and config.task.crops else 0)
    rows = copies * len(loaded.train)
    first = loaded.train[0]
    decode = scorer.tokenizer.decode
    if isinstance(first, Pair):
        shown = {"sample     chosen": first.chosen, "           rejected": first.rejected}
    else:
        shown = {f"sample     {scorer.labels[first.label]}": first.ids}
    return [
        loaded.describe(),
        f"steps      {steps_of(config, rows):,} of {config.batch.rows} rows, out of {rows:,}",
        *size_lines(scorer.trained(), scorer.fixed()),
        *(f"{side}: {decode(ids[-60:])!r} (the end; {len(ids)} tokens)" for side, ids in shown.items()),
    ]


def plan_ppo(recipe: Recipe, config: PPOConfig, processes: Processes) -> list[str]:
    """Lines about a ppo section, with one prompt as the policy reads it."""
    loaded = ppo_run.load_parts(recipe, config, processes)
    source = recipe.data.prompts
    assert source is not None
    policy = loaded.policy
    return [
        loaded.prompts.report.describe(),
        f"proof      {len(loaded.held_out)} held-out prompts, answered before and after",
        *size_lines(policy.trained(), policy.fixed()),
        f"answers    up to {sampling_plan(config.sampling, recipe.seed).longest} tokens; context {policy.context}",
        f"prompt     {ppo_run.prompt_preview(loaded.prompts.train[0], source)}",
    ]


def plan_compare(recipe: Recipe, config: CompareConfig, processes: Processes) -> list[str]:
    """Lines about a compare section."""
    loaded = compare_run.load_parts(recipe, config, processes)
    terms = ", ".join(f"{term.name} (weight {term.weight:g})" for term in loaded.terms)
    return [
        f"models     {config.before} and {config.after}",
        f"answers    {len(loaded.prompts):,} held-out prompts, up to {loaded.plan.longest} tokens each, by both",
        f"metrics    {terms}",
    ]


def size_lines(trained: Mapping[str, torch.nn.Parameter], fixed: Sequence[torch.Tensor]) -> list[str]:
    """Parameter counts, and the memory in MB that lasts throughout a run: weights, gradients, AdamW's two moments."""
    head = sum(p.numel() for name, p in trained.items() if name.startswith("value_head."))
    counts = [sum(p.numel() for p in parameters) for parameters in (trained.values(), fixed)]
    gradients = sum(p.numel() * p.element_size() for p in trained.values())
    weights = gradients + sum(p.numel() * p.element_size() for p in fixed)
    parts = {"weights": weights, "gradients": gradients, "optimizer": 2 * gradients}
    told = ", ".join(f"{name} {size / 2**20:,.1f} MB" for name, size in parts.items())
    of_head = f" ({head:,} of them in the value head)" if head else ""
    return [
        f"parameters {counts[0]:,} trained{of_head}, {counts[1]:,} frozen",
        f"memory     {told}: {sum(parts.values()) / 2**20:,.1f} MB in all; activations and caches come on top",
    ]


def _shown(tokenizer: Any, sequence: TokenSequence, start: int, end: int) -> str:
    """The tokens as text, cut to fit a line, with their number."""
    ids = sequence.ids[start:end].tolist()
    text = tokenizer.decode(ids[:40])
    return f"{text!r}{'…' if len(ids) > 40 else ''} ({len(ids)} tokens)"
