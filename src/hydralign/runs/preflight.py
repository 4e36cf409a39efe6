"""Everything that can be refused before the first section runs: data, names, files, forms, rewards, the output folder.

Checks every section of a recipe without loading weights, in little more time than it takes to read its data once, so
that a mistake in the last one is found before the first has trained for hours. A model that an earlier section is yet
to make is judged by what that section starts from. Of large data sets a sample is looked at closely; the rest is
checked when its section runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydralign.config import PPOConfig, Recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.data import RESERVED_COLUMNS, HashSplit, LastSplit, SourceConfig, SourceSplit
from hydralign.config.model import HydraForm
from hydralign.config.paths import paths_of
from hydralign.config.recipe import OUTPUT
from hydralign.config.reward import Labels, RewardConfig, RewardTestConfig
from hydralign.config.sft import SFTConfig
from hydralign.data import DataSet, choose_rows, load_comparisons, load_demonstrations, load_labelled, load_prompts
from hydralign.data.table_cache import cached_tables
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, HydralignError, TokenizerError
from hydralign.evaluation.rouge import reference_texts, require_reference_columns
from hydralign.generation.sampler import check_context
from hydralign.methods.sampling import sampling_params
from hydralign.methods.sft import max_tokens_of
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.forms.build import VALUES_WITHOUT_CRITIC
from hydralign.runs import compare as compare_run
from hydralign.runs import held_out_prompts, reward_tests
from hydralign.runs import reward as reward_run
from hydralign.runs import sft as sft_run
from hydralign.runs.model_facts import ModelFacts, ModelSource, require_form
from hydralign.runs.reward_checks import check_terms
from hydralign.runs.same_settings import comparable_text
from hydralign.runs.steps import Step
from hydralign.tracking import require_trackers
from hydralign.types import Prompt

Record = TypeVar("Record")

HEAD = 5000
"""Rows of a source that are looked at closely."""


@cached_tables()
def check_steps(recipe: Recipe, steps: Sequence[Step], wanted: Sequence[str], processes: Distributed) -> None:
    """Check the steps with the `wanted` titles; `steps` are all of the recipe in the order in which they run.

    Raises the error that the step would end with, which names the step; writes nothing.
    """
    for step in steps:
        if step.title in wanted:
            with errors_naming(step.title):
                _check_step(recipe, steps, step, processes)


@contextmanager
def errors_naming(title: str) -> Iterator[None]:
    """Errors that leave the block say which section they are about."""
    try:
        yield
    except HydralignError as error:
        if not str(error).startswith(title):
            error.args = (f"{title}: {error}",)
        raise


def _check_step(recipe: Recipe, steps: Sequence[Step], step: Step, processes: Distributed) -> None:
    place = steps.index(step)
    folders = {f"{OUTPUT}/{one.title}/model": one for one in steps}
    _check_order(recipe, step, folders, steps[place:])
    made = {folder: one for folder, one in folders.items() if one in steps[:place]}
    require_trackers(getattr(step.config, "trackers", ()))
    labels = {folder: _labels_of(recipe, one.config) for folder, one in made.items()}
    step.section.check(recipe, step.config, ModelSource(recipe.model, recipe.output, made, labels), processes)


def _check_order(recipe: Recipe, step: Step, folders: Mapping[str, Step], later: Sequence[Step]) -> None:
    """Raise ConfigError when the step reads what it makes itself, or what only a later step makes."""
    for _, text in paths_of(step.config):
        maker = folders.get(comparable_text(text, recipe.output))
        if maker is not None and (maker is step or (maker in later and not Path(text).expanduser().exists())):
            when = "it makes that itself" if maker is step else f"{maker.title} makes that, and runs later"
            raise ConfigError(f"{step.title} reads {text}: {when}. Name a model that is there before.")


def read_head(load: Callable[..., DataSet[Record]], source: SourceConfig, *rest: Any, **more: Any) -> tuple[Any, bool]:
    """(the data set of at most HEAD usable rows, and as many of a held-out source; whether these are all).

    Raises as `load` does.
    """
    split = source.held_out
    if isinstance(split, HashSplit | LastSplit) and split.percent > 99:
        return load(source, *rest, **more), True
    short = source.limit is not None and source.limit <= HEAD
    head = source if short else source.model_copy(update={"limit": HEAD})
    data = load(head, *rest, held_out_limit=HEAD, **more)
    if isinstance(split, SourceSplit) and len(data.held_out) >= HEAD:
        return data, False
    return data, short or not any(reason.startswith("beyond the limit") for reason in data.report.dropped)


def read_rows(
    load: Callable[..., DataSet[Record]], source: SourceConfig, facts: ModelFacts, **more: Any
) -> tuple[DataSet[Record] | None, bool]:
    """`read_head` with the model's tokenizer; None for what only a tokenizer that is not at hand could read."""
    tokenizer = more.pop("stand_in", facts.tokenizer)
    if facts.tokenizer is not None or facts.path is None:
        return read_head(load, source, tokenizer, **more)
    free = {"min_tokens": None, "max_tokens": None}
    source = source.model_copy(update={"filter": source.filter.model_copy(update=free)})
    try:
        data, _ = read_head(load, source, tokenizer, **more)
    except TokenizerError:
        return None, False
    return data, False


def check_sft(recipe: Recipe, config: SFTConfig, models: ModelSource, processes: Distributed) -> None:
    """Raise what an sft section would end with, as far as that can be known before."""
    source, model = sft_run.demonstrations_of(recipe, config), config.model or recipe.model
    processes.require_shares(config.batch.rows, "batch.rows")
    facts = models.of_config(model)
    require_form(facts, model)
    if facts.tokenizer is None:
        source = source.model_copy(update={"cut": None})  # nobody can count yet; whole texts have the same columns
    data, whole = read_rows(load_demonstrations, source, facts, seed=recipe.seed)
    if facts.context is None:
        return
    max_tokens_of(config, facts)  # type: ignore[arg-type]
    if data is not None and facts.tokenizer is not None and whole:
        sft_run.encode_demonstrations(config, source, data, facts, (facts.tokenizer.eos_token_id,))


def check_reward(recipe: Recipe, config: RewardConfig, models: ModelSource, processes: Distributed) -> None:
    """Raise what a reward section would end with, as far as that can be known before."""
    source, model = reward_run.reward_source(recipe, config), config.model or recipe.model
    processes.require_shares(config.batch.rows, "batch.rows")
    facts = models.of_config(model, writes=False)
    require_form(facts, model, freeze_layers=config.freeze_layers, scores=True)
    if facts.context is not None and config.max_tokens is not None and config.max_tokens > facts.context:
        raise ConfigError(
            f"max_tokens={config.max_tokens}, but {facts.kind} reads at most {facts.context} tokens: it has no "
            f"positions for more. Use at most {facts.context}."
        )
    load: Callable[..., DataSet[Any]] = load_labelled if isinstance(config.task, Labels) else load_comparisons
    data, whole = read_rows(load, source, facts)
    if data is None:
        return
    if whole:
        reward_run.require_enough_rows(data.train, data.held_out, data.report.describe())
    chosen = choose_rows(data.held_out, config.evaluation.rows)
    tests = [(test, _test_rows(test, load, facts)) for test in reward_tests.tests_of(config)]
    if isinstance(config.task, Labels):
        _check_labels(config.task, data, chosen, tests, whole=whole)
    else:
        reward_run.require_finished([data.train, chosen, *(rows for _, rows in tests)])


def _test_rows(test: RewardTestConfig, load: Callable[..., DataSet[Any]], facts: ModelFacts) -> Sequence[Any]:
    """Rows to test on; none when only a tokenizer that is not at hand could read them."""
    data, whole = read_rows(load, reward_tests.without_held_out(test), facts)
    if data is None:
        return ()
    columns = {name for record in data.train for name in record.columns} if whole else data.report.columns
    reward_tests.require_group_column(test, columns)
    return data.train


def _check_labels(
    task: Labels,
    data: DataSet[Any],
    held_out: Sequence[Any],
    tests: Sequence[tuple[RewardTestConfig, Sequence[Any]]],
    *,
    whole: bool,
) -> None:
    """Raise DataError for labels that have no name, or that only rows to measure have."""
    found = [row.label for row in data.train]
    if not whole and len(set(found)) < 2:
        return  # rows may be sorted by label
    columns = reward_run.label_columns(task, found)
    if not whole and not task.names:
        return
    reward_run.require_known_labels(held_out, columns)
    for test, rows in tests:
        own = reward_tests.own_label_columns(test, tuple(dict.fromkeys(columns.values())))
        reward_run.require_known_labels(rows, own or columns)


def _labels_of(recipe: Recipe, config: Any) -> Sequence[str]:
    """The labels of the classifier that a section makes; none of anything else, or when data do not show them."""
    if not isinstance(getattr(config, "task", None), Labels):
        return []
    if config.task.names:
        return list(dict.fromkeys(config.task.names.values()))
    try:
        data, whole = read_head(load_labelled, reward_run.reward_source(recipe, config))
    except HydralignError:  # raised where that section itself is checked
        return []
    return sorted({row.label for row in data.train}) if whole else []


def check_ppo(recipe: Recipe, config: PPOConfig, models: ModelSource, processes: Distributed) -> None:
    """Raise what a ppo section would end with, as far as that can be known before."""
    held_out_prompts.required_prompts(recipe)
    processes.require_shares(config.batch.minibatch_rows, "ppo rows per minibatch")
    model = config.model or recipe.model
    facts = models.of_config(model)
    models.require_base(model)
    require_form(facts, model, splits=True)
    if not config.has_critic and isinstance(model.form, HydraForm) and model.form.value == "branch":
        raise ConfigError(
            f"model.form.value=branch with ppo.advantages.type={config.advantages.type}: {VALUES_WITHOUT_CRITIC} Leave "
            "model.form.value out, or use advantages.type gae."
        )
    prompts, whole = _prompts(recipe, facts)
    if prompts and whole:
        held_out_prompts.choose_prompts(prompts, config.evaluation.prompts, at_least=max(2, processes.count))
    read = [*prompts.train, *choose_rows(prompts.held_out, config.evaluation.prompts)] if prompts else []
    _check_length(facts, read, config.sampling, recipe.seed)
    check_terms(config.rewards, columns_of(prompts, whole=whole), models)


def check_compare(recipe: Recipe, config: CompareConfig, models: ModelSource, processes: Distributed) -> None:
    """Raise what a compare section would end with, as far as that can be known before."""
    before, after, sampling, score = compare_run.required_settings(recipe.ppo, config)
    held_out_prompts.required_prompts(recipe)
    sides = []
    for name, path in (("compare.before", before), ("compare.after", after)):
        with errors_naming(name):
            sides.append(models.of_path(path))
    prompts, whole = _prompts(recipe, sides[0])
    chosen = choose_rows(prompts.held_out, config.prompts) if prompts else ()
    if prompts and whole:
        held_out_prompts.choose_prompts(prompts, config.prompts, at_least=max(2, processes.count))
        reference_texts(chosen, config.references)
    for facts in sides:
        _check_length(facts, chosen, sampling, recipe.seed)
    columns = columns_of(prompts, whole=whole)
    require_reference_columns(config.references, columns)
    names = check_terms(score, columns, models)
    judges = [f"judge/{name}" for name in check_terms(config.judges, columns, models)]
    compare_run.require_shares(config, names, judges, truncated=sampling_params(sampling, recipe.seed).truncated)


def _prompts(recipe: Recipe, facts: ModelFacts) -> tuple[DataSet[Prompt] | None, bool]:
    """The first prompts as the model reads them, and whether these are all and their number is certain."""
    source = held_out_prompts.required_prompts(recipe)
    if facts.tokenizer is not None:
        return read_rows(load_prompts, source, facts, seed=recipe.seed)
    # A tokenizer that is not known yet counts tokens in its own way.
    stand_in = train_tokenizer(["a"], vocabulary=260)
    free = {"min_tokens": None, "max_tokens": None}
    unbounded = {"max_prompt_tokens": None, "too_long_prompt": "error"}
    plain = source.model_copy(update={"filter": source.filter.model_copy(update=free), **unbounded})
    data, whole = read_rows(load_prompts, plain, facts, seed=recipe.seed, stand_in=stand_in)
    return data, whole and source.cut is None and plain == source


def columns_of(prompts: DataSet[Prompt] | None, *, whole: bool) -> frozenset[str] | None:
    """The columns that rewards can ask for; None when they are not known. A row beyond the first may have others."""
    if prompts is None:
        return None
    if not whole:
        return frozenset(prompts.report.columns) - RESERVED_COLUMNS
    return frozenset(name for prompt in (*prompts.train, *prompts.held_out) for name in prompt.columns)


def _check_length(facts: ModelFacts, prompts: Sequence[Prompt], sampling: Any, seed: int) -> None:
    """Raise ConfigError when a prompt and its answer do not fit the model's context."""
    if facts.context is None or not prompts:
        return
    params = sampling_params(sampling, seed)
    if facts.tokenizer is not None:
        check_context(facts, prompts, params)  # type: ignore[arg-type]
    elif params.longest >= facts.context:
        raise ConfigError(
            f"Answers may have {params.longest} tokens, but the model's context holds {facts.context}, prompt "
            "included: later tokens would have no position. Shorten answers (max_new_tokens, lengths)."
        )
