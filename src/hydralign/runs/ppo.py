"""A recipe's ppo section from beginning to end: build the parts, answer held-out prompts, train, answer again, tell.

Held-out evaluation is part of the run: the same prompts are answered before and after with the same random numbers,
and the paired interval is printed and stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydralign.config import PPOConfig, Recipe
from hydralign.config.model import ModelConfig
from hydralign.data import DataSet, PromptStream, fingerprint, load_prompts, training_texts
from hydralign.distributed import Distributed
from hydralign.evaluation.comparison import compare_answers, comparison_record
from hydralign.evaluation.held_out import Answers, answer_held_out
from hydralign.evaluation.statistics import Difference
from hydralign.generation.sampler import check_context
from hydralign.methods.ppo import PPOParts, train
from hydralign.methods.sampling import sampling_params
from hydralign.models import load_policy, make_model, make_policy, train_tokenizer
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.rewards.build import build_terms
from hydralign.rewards.combine import RewardTerm
from hydralign.runs.held_out_prompts import choose_prompts, load_or_measure_answers, print_comparison, required_prompts
from hydralign.runs.section import RESULT, open_section, write_json
from hydralign.tracking import Tracker
from hydralign.training.run import log_held_out
from hydralign.types import Prompt


def run_ppo(recipe: Recipe, config: PPOConfig, folder: Path, processes: Distributed) -> list[Difference]:
    """Train as the recipe's `ppo` section says, into `folder`; returns the paired differences, the score first."""
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

    with open_section(recipe, config, folder, processes) as records:
        rows = fingerprint(held_out)
        before = load_or_measure_answers(folder / "before.json", rows, partial(answers, "before"), processes)
        parts = PPOParts(
            policy=policy,
            prompts=PromptStream(loaded.prompts.train, recipe.seed),
            rewards=terms,
            folder=folder,
            records=records,
            processes=processes,
            on_step=partial(_evaluate_when_due, config, answers, records),
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


def _evaluate_when_due(
    config: PPOConfig, answers: Callable[[str], Answers], tracker: Tracker, step: int, _: Policy
) -> None:
    """Means of the held-out answers between before and after; non-finite ones are an event, and training goes on."""
    every = config.evaluation.every
    if not every or step % every or step == config.steps:
        return

    def means() -> dict[str, float]:
        metrics = answers(f"after {step} iterations").metrics
        return {f"eval/{name}": sum(x) / len(x) for name, x in metrics.items()}

    log_held_out(tracker, step, means)


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
    policy = _policy(recipe, config.model or recipe.model, processes, critic=config.has_critic)
    prompts = load_prompts(source, policy.tokenizer, seed=recipe.seed)
    held_out = choose_prompts(prompts, config.evaluation.prompts, at_least=max(2, processes.count))
    check_context(policy, [*prompts.train, *held_out], sampling_params(config.sampling, recipe.seed))
    return LoadedPPO(policy, prompts, held_out, terms)


def _policy(recipe: Recipe, model: ModelConfig, processes: Distributed, *, critic: bool) -> Policy:
    """The model in its form."""
    if model.path is not None:
        return load_policy(
            model.path,
            form=model.form,
            critic=critic,
            precision=model.precision,
            pad_token=model.pad_token,
            device=processes.device,
            seed=recipe.seed,
        )
    assert model.new is not None
    tokenizer = train_tokenizer(training_texts(recipe.data), vocabulary=model.new.vocabulary)
    fresh = make_model(tokenizer, **model.new.model_dump(exclude={"vocabulary"}), seed=recipe.seed)
    return make_policy(
        fresh.to(processes.device),
        tokenizer,
        form=model.form,
        critic=critic,
        precision=model.precision,
        seed=recipe.seed,
    )
