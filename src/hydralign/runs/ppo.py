"""A recipe's ppo section from beginning to end: build the parts, answer held-out prompts, train, answer again, report.

Held-out evaluation is part of the run: the same prompts are answered before and after with the same random numbers,
and the paired interval is printed and stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hydralign.config import PPOConfig, Recipe
from hydralign.data import DataSet, PromptStream, fingerprint, load_prompts, training_texts
from hydralign.distributed import Distributed
from hydralign.evaluation.comparison import compare_answers, comparison_record
from hydralign.evaluation.held_out import Answers, answer_held_out
from hydralign.evaluation.statistics import Difference
from hydralign.generation.sampler import check_context
from hydralign.methods.ppo import PPOParts, train
from hydralign.methods.sampling import sampling_params
from hydralign.models import load_policy, make_model, make_policy
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.rewards.build import build_terms
from hydralign.rewards.combine import RewardTerm
from hydralign.runs.held_out_prompts import choose_prompts, load_or_measure_answers, print_comparison, required_prompts
from hydralign.runs.section import open_section
from hydralign.runs.section_files import RESULT, write_json
from hydralign.runs.section_model import load_or_make
from hydralign.runs.steps import Step
from hydralign.training.run import log_held_out
from hydralign.types import Prompt


def run_ppo(recipe: Recipe, step: Step, processes: Distributed) -> list[Difference]:
    """Train as the recipe's `ppo` section says, into its folder; returns the paired differences, the score first."""
    config, folder = step.config, step.folder
    loaded = load_ppo(recipe, config, processes)
    policy, held_out, terms = loaded.policy, loaded.held_out, loaded.terms
    if processes.main:
        say(loaded.prompts.report.describe())

    def answers(label: str) -> Answers:
        return answer_held_out(
            policy,
            held_out,
            terms,
            sampling_params(config.sampling, recipe.seed),
            micro_batch_size=config.batch.micro_batch_size,
            label=label,
            processes=processes,
        )

    def means(done: int) -> dict[str, float]:
        metrics = answers(f"after {done} iterations").metrics
        return {f"eval/{name}": sum(x) / len(x) for name, x in metrics.items()}

    with open_section(recipe, step, processes) as records:

        def evaluate(done: int, _: Policy) -> None:
            log_held_out(records, done, partial(means, done), every=config.evaluation.every, steps=config.steps)

        rows = fingerprint(held_out)
        before = load_or_measure_answers(folder / "before.json", rows, partial(answers, "before"), processes)
        parts = PPOParts(
            policy=policy,
            prompts=PromptStream(loaded.prompts.train, recipe.seed),
            rewards=terms,
            folder=folder,
            records=records,
            processes=processes,
            on_step=evaluate,
        )
        train(config, parts, seed=recipe.seed)
    after = load_or_measure_answers(folder / "after.json", rows, partial(answers, "after"), processes)
    comparison = compare_answers(before, after)
    if processes.main:
        policy.save(folder / "model")
        write_json(folder / RESULT, comparison_record(comparison))
        print_comparison(comparison)
        say(f"Model, metrics and samples lie in {folder}.")
    processes.barrier()
    return list(comparison.metrics)


@dataclass(frozen=True)
class LoadedPPO:
    """What a ppo section works with, loaded and checked against each other."""

    policy: Policy
    prompts: DataSet[Prompt]
    held_out: tuple[Prompt, ...]
    """The held-out prompts that are answered before and after."""
    terms: tuple[RewardTerm, ...]


def load_ppo(recipe: Recipe, config: PPOConfig, processes: Distributed) -> LoadedPPO:
    """Everything that a ppo section needs, with every check that can be made before the first answer is sampled."""
    source = required_prompts(recipe)
    processes.require_shares(config.batch.minibatch_rows, "ppo rows per minibatch")
    terms = build_terms(config.rewards, processes.device)
    model = config.model or recipe.model
    policy = load_or_make(
        model,
        training_texts(recipe.data) if model.new else (),
        load=load_policy,
        make=make_model,
        wrap=make_policy,
        device=processes.device,
        seed=recipe.seed,
        critic=config.has_critic,
    )
    prompts = load_prompts(source, policy.tokenizer, seed=recipe.seed)
    held_out = choose_prompts(prompts, config.evaluation.prompts, at_least=max(2, processes.count))
    check_context(policy, [*prompts.train, *held_out], sampling_params(config.sampling, recipe.seed))
    return LoadedPPO(policy, prompts, held_out, terms)
