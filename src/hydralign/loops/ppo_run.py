"""A recipe's ppo section from beginning to end: build the parts, answer held-out prompts, train, answer again, tell.

The proof is part of the run: the same held-out prompts are answered before and after with the same random numbers,
and the paired interval is printed and stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydralign.config import PPOConfig, Recipe
from hydralign.config.data import PromptSourceConfig
from hydralign.config.loading import dump_config
from hydralign.data import DataSet, PromptStream, load_prompts, training_texts
from hydralign.errors import ConfigError, DataError, NonFiniteError
from hydralign.evaluation.held_out import Answers, answer_held_out, as_record, compare_answers
from hydralign.evaluation.statistics import Difference
from hydralign.generation.sampler import check_context
from hydralign.loops.ppo import PPOParts, sampling_plan, train
from hydralign.models import load_policy, make_model, make_policy, train_tokenizer
from hydralign.models.policy import Policy
from hydralign.processes import Processes
from hydralign.progress import say
from hydralign.rewards.build import build_terms
from hydralign.rewards.combine import RewardTerm
from hydralign.tracking import Tracker, open_trackers
from hydralign.types import Prompt

RESULT = "evaluation.json"
"""Written last: a section whose folder holds it is finished."""


def run_ppo(recipe: Recipe, folder: Path, processes: Processes) -> list[Difference]:
    """Train as the recipe's `ppo` section says, into `folder`; returns the paired differences, the score first."""
    config = required_section(recipe)
    loaded = load_parts(recipe, processes)
    policy, held_out, terms = loaded.policy, loaded.held_out, loaded.terms
    if processes.main:
        say(loaded.prompts.report.describe())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    processes.wait()

    def answers(label: str) -> Answers:
        return answer_held_out(
            policy,
            held_out,
            terms,
            sampling_plan(config.sampling, recipe.seed),
            micro_rows=config.batch.micro_rows,
            label=label,
            processes=processes,
        )

    before = _stored(folder / "before.json", partial(answers, "before"), processes)
    # Rows mirror to trackers from the main process only; the others keep nothing.
    tracker = (
        open_trackers(folder, config.trackers, folder.parent.name, config.model_dump()) if processes.main else None
    )

    try:
        parts = PPOParts(
            policy=policy,
            prompts=PromptStream(loaded.prompts.train, recipe.seed),
            rewards=terms,
            folder=folder,
            tracker=tracker or _Silent(),
            record=tracker.primary if tracker else None,
            processes=processes,
            on_step=partial(_evaluate_when_due, config, answers, tracker or _Silent()),
        )
        train(config, parts, seed=recipe.seed)
    finally:
        if tracker:
            tracker.close()
    after = _stored(folder / "after.json", partial(answers, "after"), processes)
    differences = compare_answers(before, after)
    if processes.main:
        policy.export(folder / "model")
        _write(folder / RESULT, as_record(differences, before, after))
        tell(differences, before, after, folder)
    processes.wait()
    return differences


def _evaluate_when_due(
    config: PPOConfig, answers: Callable[[str], Answers], tracker: Tracker, step: int, _: Policy
) -> None:
    """Means of the held-out answers between before and after; poison there is an event, and training goes on."""
    every = config.evaluation.every
    if not every or step % every or step == config.steps:
        return
    try:
        metrics = answers(f"after {step} iterations").metrics
    except NonFiniteError as error:
        tracker.event(step - 1, "non_finite", {"where": f"evaluation/{error.where}", "message": str(error)})
    else:
        tracker.log(step - 1, {f"eval/{name}": sum(x) / len(x) for name, x in metrics.items()})


def required_section(recipe: Recipe) -> PPOConfig:
    """The recipe's ppo section; raises ConfigError when it or its prompts are missing."""
    if recipe.ppo is None:
        raise ConfigError("The recipe has no `ppo` section: there is nothing to run. Add one, with `rewards` at least.")
    if recipe.data.prompts is None:
        raise ConfigError("The recipe has no `data.prompts`: PPO has nothing to answer. Name a source of prompts.")
    return recipe.ppo


@dataclass(frozen=True)
class Loaded:
    """What a ppo section works with, loaded and checked against each other."""

    policy: Policy
    prompts: DataSet[Prompt]
    held_out: tuple[Prompt, ...]
    """The held-out prompts that are answered before and after."""
    terms: tuple[RewardTerm, ...]


def load_parts(recipe: Recipe, processes: Processes) -> Loaded:
    """Everything that a ppo section needs, with every check that can be made before the first answer is sampled."""
    config = required_section(recipe)
    processes.require_shares(config.batch.minibatch_rows, "ppo rows per minibatch")
    terms = build_terms(config.rewards, processes.device)
    policy = _policy(recipe, processes)
    assert recipe.data.prompts is not None
    prompts = load_prompts(recipe.data.prompts, policy.tokenizer, seed=recipe.seed)
    held_out = proof_prompts(prompts, config, at_least=max(2, processes.count))
    check_context(policy, [*prompts.train, *held_out], sampling_plan(config.sampling, recipe.seed))
    return Loaded(policy, prompts, held_out, terms)


def _policy(recipe: Recipe, processes: Processes) -> Policy:
    """The recipe's model in its form."""
    model = recipe.model
    if model.path is not None:
        return load_policy(
            model.path,
            form=model.form,
            precision=model.precision,
            pad_token=model.pad_token,
            device=processes.device,
            seed=recipe.seed,
        )
    assert model.new is not None
    tokenizer = train_tokenizer(training_texts(recipe.data), vocabulary=model.new.vocabulary)
    fresh = make_model(tokenizer, **model.new.model_dump(exclude={"vocabulary"}), seed=recipe.seed)
    return make_policy(
        fresh.to(processes.device), tokenizer, form=model.form, precision=model.precision, seed=recipe.seed
    )


def proof_prompts(prompts: DataSet[Prompt], config: PPOConfig, *, at_least: int) -> tuple[Prompt, ...]:
    """The held-out prompts that are answered before and after; raises DataError when no interval can be drawn."""
    held_out = prompts.held_out[: config.evaluation.prompts]
    if len(held_out) < at_least:
        raise DataError(
            f"{len(held_out)} prompts are held out, at least {at_least} are needed: whether training helped could not "
            "be told from chance. Set data.prompts.held_out, such as {by: hash, percent: 5}, or name more prompts."
        )
    return held_out


def tell(differences: Sequence[Difference], before: Answers, after: Answers, folder: Path) -> None:
    """The result in plain sentences."""
    for difference in differences:
        say(difference.sentence())
    facts = as_record(differences, before, after)["facts"]
    told = ", ".join(f"{name} {fact['before']:.3g} → {fact['after']:.3g}" for name, fact in facts.items())
    say(f"On held-out prompts: {told} (means). Model, metrics and samples lie in {folder}.")


def _stored(path: Path, make: Callable[[], Answers], processes: Processes) -> Answers:
    """Answers from a file of this run, or made now and written there. Every process returns the same."""
    if path.exists():
        return Answers.load(path)
    answers = make()
    processes.wait()
    if processes.main:
        answers.save(path)
    processes.wait()
    return answers


def _write(path: Path, record: Mapping[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.partial")
    unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.rename(path)


class _Silent:
    """The tracker of processes that do not write."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def prompt_preview(prompt: Prompt, source: PromptSourceConfig) -> str:
    """One prompt as the policy will read it: text, then ids."""
    cut = f"cut to {source.cut.min_tokens}-{source.cut.max_tokens} tokens" if source.cut else "whole"
    return f"{prompt.text!r} ({cut}; {len(prompt.token_ids)} tokens: {list(prompt.token_ids[:12])})"
