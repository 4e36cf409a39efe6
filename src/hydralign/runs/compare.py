"""A recipe's compare section: both models answer the same held-out prompts, and a report says what came out.

Both sides get the same random numbers, so where the models agree they give the same answer; what differs is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydralign.algorithms.kl import gap_name
from hydralign.config import PPOConfig, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.ppo import SamplingConfig
from hydralign.data import encode_prompts, fingerprint, load_prompts
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, TokenizerError
from hydralign.evaluation.comparison import FACTS, Comparison, Share, check_shares, compare_answers, comparison_record
from hydralign.evaluation.held_out import Answers, answer_held_out
from hydralign.evaluation.report import AnswerPair, Report, write_report
from hydralign.evaluation.rouge import ROUGE, describe_rouge, reference_texts, rouge
from hydralign.evaluation.statistics import Difference
from hydralign.generation.sampler import check_context
from hydralign.methods.sampling import sampling_params
from hydralign.models.forms.build import load_frozen_policy
from hydralign.models.policy import Policy
from hydralign.progress import say
from hydralign.rewards.build import build_terms
from hydralign.rewards.combine import RewardTerm
from hydralign.runs.held_out_prompts import choose_prompts, load_or_measure_answers, print_comparison, required_prompts
from hydralign.runs.provenance import held_out_source, reward_results
from hydralign.runs.section_files import RESULT, read_lines, write_json
from hydralign.runs.standing import prepare_folder
from hydralign.runs.steps import Step
from hydralign.types import Prompt, SamplingParams

PROBES = ("The film was good, and its 2nd end  bad.\n\tWhy?", "Été à Zürich – 東京 🙂", "def f(x):\n    return x+1")
"""Texts on which two tokenizers that are the same agree: letters, blanks, digits, marks, other scripts."""


@dataclass(frozen=True)
class LoadedComparison:
    """What a comparison works with."""

    before: Policy
    after: Policy
    prompts: tuple[Prompt, ...]
    terms: tuple[RewardTerm, ...]
    """The score's terms, then the judges with weight 0."""
    names: dict[str, str]
    """Metric as the answers call it: as the report does."""
    params: SamplingParams
    references: tuple[tuple[str, ...], ...] = ()
    """Human answers to each prompt; empty where none are asked for."""


def run_compare(recipe: Recipe, step: Step, processes: Distributed) -> list[Difference]:
    """Compare as the recipe's `compare` section says; writes OUT/report.json and OUT/report.html."""
    config, folder = step.config, step.folder
    loaded = load_comparison(recipe, config, processes)
    if processes.main:
        prepare_folder(recipe, step)
    processes.barrier()

    def answers(policy: Policy, label: str) -> Answers:
        given = answer_held_out(
            policy,
            loaded.prompts,
            loaded.terms,
            loaded.params,
            micro_batch_size=config.micro_batch_size,
            samples=None,
            label=label,
            processes=processes,
        )
        kept = {loaded.names.get(name, name): values for name, values in given.metrics.items()}
        return replace(given, metrics={name: values for name, values in kept.items() if name})

    rows = fingerprint(loaded.prompts)
    before = load_or_measure_answers(folder / "before.json", rows, partial(answers, loaded.before, "before"), processes)
    after = load_or_measure_answers(folder / "after.json", rows, partial(answers, loaded.after, "after"), processes)
    before, after = (_with_rouge(side, loaded.references) for side in (before, after))
    shares = _shares(config)
    comparison = compare_answers(before, after, shares=shares, confidence=config.confidence)
    if processes.main:
        score = required_settings(recipe.ppo, config)[-1]
        measured, doubts = reward_results([*score, *config.judges])
        about = _about(recipe, config, loaded) | measured
        n, wanted = len(loaded.prompts), config.prompts
        fewer = [f"{n:,} held-out prompts are all there are of the {wanted:,} wanted."] if n < wanted else []
        record = comparison_record(comparison) | {"about": about, "notes": [*config.notes, *fewer, *doubts]}
        shown = _report(recipe, config, record, before, after, loaded.references)
        page = write_report(folder.parent, shown)[1]
        write_json(folder / RESULT, record)
        print_comparison(comparison)
        say(f"{conclusion(comparison)} The report lies in {page}.")
    processes.barrier()
    return list(comparison.metrics)


def conclusion(comparison: Comparison) -> str:
    """The verdict on the primary metric in one short sentence."""
    verdict = comparison.metrics[0].verdict
    return f"After training, the score is {verdict}{' from before' if verdict == 'not distinguishable' else ''}."


def load_comparison(recipe: Recipe, config: CompareConfig, processes: Distributed) -> LoadedComparison:
    """Everything that a comparison needs, with every check that can be made before the first answer."""
    before_path, after_path, sampling, score = required_settings(recipe.ppo, config)
    source = required_prompts(recipe)
    shared: dict[str, Any] = {
        "pad_token": recipe.model.pad_token,
        "device": processes.device,
        "precision": config.precision,
    }
    before = load_frozen_policy(before_path, **shared)
    after = load_frozen_policy(after_path, reference=before, **shared)
    require_same_tokens(before.tokenizer, after.tokenizer)
    terms = build_terms(score, processes.device)
    # A judge may be called as a reward is: its place in the report keeps them apart.
    judges = tuple(
        replace(judge, name=f"judge/{judge.name}", weight=0.0)
        for judge in (build_terms(config.judges, processes.device) if config.judges else ())
    )
    seed = recipe.seed if config.seed is None else config.seed
    params = sampling_params(sampling, seed)
    require_shares(config, [term.name for term in terms], [judge.name for judge in judges], truncated=params.truncated)
    names = {f"reward/{judge.name}": judge.name for judge in judges}
    if len(terms) == 1 and judges:
        names[f"reward/{terms[0].name}"] = ""  # a single reward is the score
    data = load_prompts(source, before.tokenizer, seed=recipe.seed)
    prompts = choose_prompts(data, config.prompts, at_least=max(2, processes.count))
    for policy in (before, after):
        check_context(policy, prompts, params)
    references = reference_texts(prompts, config.references)
    return LoadedComparison(before, after, prompts, (*terms, *judges), names, params, references)


def require_same_tokens(before: Any, after: Any) -> None:
    """Raise TokenizerError unless both tokenizers make the same ids of a text and mean the same by every id.

    Prompts are encoded once for both models, and KL between them is a sum over tokens that both can say. A token that
    only one of them has is fine as long as its id is nothing else to the other one.
    """
    # Special tokens may be renamed: reserved ones are there for that.
    tokens = [
        {number: word for word, number in one.get_vocab().items() if number not in one.all_special_ids}
        for one in (before, after)
    ]
    for number in sorted(tokens[0].keys() & tokens[1].keys()):
        if tokens[0][number] != tokens[1][number]:
            raise TokenizerError(
                f"compare.before and compare.after have different tokenizers: id {number} is {tokens[0][number]!r} in "
                f"the first and {tokens[1][number]!r} in the second. One of the models would read other texts than the "
                "other, and KL between them is not defined. Compare models that share a tokenizer."
            )
    shared, whole = len(tokens[0].keys() & tokens[1].keys()), max(map(len, tokens))
    probes = [encode_prompts(tokenizer, PROBES) for tokenizer in (before, after)]
    unequal = next((text for text, *ids in zip(PROBES, *probes, strict=True) if ids[0] != ids[1]), None)
    if unequal is not None:
        raise TokenizerError(
            f"compare.before and compare.after have tokenizers that encode {unequal!r} differently (they share "
            f"{shared:,} of {whole:,} tokens): the second model would read prompts in a way that it was not "
            "trained on. Compare models that share a tokenizer."
        )


def require_shares(
    config: CompareConfig, rewards: Sequence[str], judges: Sequence[str], *, truncated: bool = False
) -> None:
    """Raise ConfigError for shares of what will be no metric; `judges` are called judge/NAME.

    `truncated` says that answers are sampled with top-k or top-p.
    """
    several = [f"reward/{name}" for name in rewards] if len(rewards) > 1 else []
    other_gap = gap_name(truncated=not truncated)
    facts = [name for name in FACTS if name != other_gap]
    check_shares(_shares(config), ["score", *several, *judges, *(ROUGE if config.references else ()), *facts])


def _shape(params: SamplingParams) -> str:
    """What is made of the model's distribution before a token is drawn."""
    cuts = {"top-k": params.top_k, "top-p": params.top_p if params.top_p < 1 else 0}
    shown = [f"{name} {value:g}" for name, value in cuts.items() if value]
    return ", ".join([f"temperature {params.temperature:g}", *shown])


def _shares(config: CompareConfig) -> list[Share]:
    return [Share(**share.model_dump()) for share in config.shares]


def required_settings(ppo: PPOConfig | None, config: CompareConfig) -> tuple[str, str, SamplingConfig, Sequence[Any]]:
    """Both models, how to sample, and what scores; from the ppo section where compare leaves them open."""
    score = config.score or (ppo.rewards if ppo else ())
    sampling = config.sampling or (ppo.sampling if ppo else SamplingConfig())
    for name, value in (("before", config.before), ("after", config.after), ("score", score)):
        if not value:
            raise ConfigError(
                f"compare.{name} is not set, and there is no ppo section to take it from: it is unclear what to "
                f"compare. Set compare.{name}."
            )
    return str(config.before), str(config.after), sampling, score


def _with_rouge(answers: Answers, references: Sequence[Sequence[str]]) -> Answers:
    """The answers with ROUGE among their metrics, where there are human answers to compare them with."""
    if not references:
        return answers
    scores = rouge([sample["response"] for sample in answers.samples], references)
    return replace(answers, metrics=answers.metrics | scores)


def _report(
    recipe: Recipe,
    config: CompareConfig,
    record: dict[str, Any],
    before: Answers,
    after: Answers,
    references: Sequence[Sequence[str]],
) -> Report:
    humans = [next(iter(texts), "") for texts in references] or [""] * len(before.samples)
    pairs = [
        AnswerPair(old["query"], old["response"], new["response"], old["score"], new["score"], human)
        for old, new, human in zip(before.samples, after.samples, humans, strict=True)
    ]
    shown = {name: (before.metrics[name], after.metrics[name]) for name in before.metrics}
    history = Path(recipe.output).expanduser() / "ppo" / "metrics.jsonl"
    rows = read_lines(history)
    return Report(config.title or Path(recipe.output).name, record, shown, pairs, rows)


def _about(recipe: Recipe, config: CompareConfig, loaded: LoadedComparison) -> dict[str, str]:
    """Where the numbers come from, for the foot of the report."""
    source = recipe.data.prompts
    assert source is not None
    params = loaded.params
    lengths = f"{params.lengths[0]} to {params.lengths[1]}" if params.lengths else f"up to {params.max_new_tokens}"
    return {
        "model before": str(config.before),
        "model after": str(config.after),
        "prompts": f"{len(loaded.prompts):,} held-out ones of {held_out_source(source)}",
        "answers": f"{lengths} tokens, {_shape(params)}, the same random numbers on both sides",
        "score": " + ".join(f"{term.weight:g} × {term.name}" for term in loaded.terms if term.weight),
        "judges": ", ".join(term.name.removeprefix("judge/") for term in loaded.terms if not term.weight) or "none",
        **({"ROUGE": describe_rouge(config.references, loaded.references)} if config.references else {}),
        "seed": str(params.seed),
        "recipe": str(Path(recipe.output) / "recipe.yaml"),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("hydralign", "torch", "transformers")),
    }
