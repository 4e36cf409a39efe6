"""Whether the rewards of a section can be had and called: files, names, labels and columns, without loading a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace

from transformers import PretrainedConfig

from hydralign.config import rewards as config
from hydralign.config.data import RESERVED_COLUMNS
from hydralign.config.reward import Labels
from hydralign.errors import ModelError
from hydralign.models.classifiers.labels import (
    are_independent,
    find_label,
    labels_of_config,
    require_comparable,
    require_probabilities,
)
from hydralign.models.classifiers.loading import require_pad_rows
from hydralign.models.folders.loading import check_folder
from hydralign.models.folders.merged import load_tokenizer
from hydralign.rewards.combine import require_reference_column, unique_names
from hydralign.rewards.functions import load_function, wanted_arguments
from hydralign.rewards.reward_model import require_reward_model
from hydralign.runs.model_facts import ModelSource, read_model_config, require_rows_for_ids
from hydralign.runs.same_settings import comparable_text


def check_terms(
    terms: Sequence[config.RewardTerm], columns: Collection[str] | None, models: ModelSource
) -> tuple[str, ...]:
    """The names that the terms will have. `columns` are those of the data, None when they are not known.

    Raises RewardError or ModelError for a term that cannot be had, or that asks for a column which is not there.
    """
    names = unique_names(term.name or _name(term, models) for term in terms)
    for term, name in zip(terms, names, strict=True):
        if columns is None:
            continue
        if isinstance(term, config.FunctionRewardConfig):
            wanted_arguments(load_function(term.function), {*columns, *RESERVED_COLUMNS}, name=name)
        if term.minus_reference is not None:
            require_reference_column(name, term.minus_reference, columns)
    return tuple(names)


def _name(term: config.RewardTerm, models: ModelSource) -> str:
    match term:
        case config.FunctionRewardConfig():
            load_function(term.function)
            return term.function.rpartition(":")[2]
        case config.ClassifierRewardConfig():
            labels = _labels(term, models)
            return term.label if labels is None else labels[find_label(term.label, labels)]
        case config.ModelRewardConfig():
            _require_scores(term, models)
            return Path(term.path).name


def _labels(term: config.ClassifierRewardConfig, models: ModelSource) -> list[str] | None:
    """The labels of the term's classifier; None where they are known only once it is made, or loaded from the hub."""
    maker, problem_type = models.maker(term.path), None
    if maker is not None and maker.section.makes == "classifier":
        found = models.labels.get(comparable_text(term.path, models.output))
        labels = (list(found) if found else None) if isinstance(maker.config.task, Labels) else ["score"]
    elif maker is not None:
        raise ModelError(f"{term.path!r} will be a language model: it has no labels to read. Name a classifier.")
    else:
        where = check_folder(term.path, whole=True)
        raw = PretrainedConfig.get_config_dict(where)[0] if Path(where).is_dir() else {}
        if not raw:
            return None
        require_pad_rows(raw)
        labels, problem_type = labels_of_config(raw, term.label, repr(term.path)), raw.get("problem_type")
        if (found := read_model_config(where)) is not None:
            require_rows_for_ids(load_tokenizer(where), found, f"Model {where!r}", writes=False)
    if labels is not None:
        require_probabilities(problem_type, term.activation, term.output)
        require_comparable(labels, term.output, independent=are_independent(term.activation, problem_type))
    return labels


def _require_scores(term: config.ModelRewardConfig, models: ModelSource) -> None:
    """Raise ModelError unless the term's model is, or will be, a reward model."""
    maker = models.maker(term.path)
    if maker is not None:
        if maker.section.makes != "classifier" or isinstance(maker.config.task, Labels):
            raise ModelError(
                f"{term.path!r} will be a {maker.section.makes}, which has no single score: what the reward is would "
                "be a guess. Use a reward of type classifier and name the label, or a reward section whose task is "
                "comparisons."
            )
        return
    where = check_folder(term.path, whole=True)
    if Path(where).is_dir() and (found := read_model_config(where)) is not None:
        tokenizer = load_tokenizer(where)
        require_reward_model(SimpleNamespace(config=found), tokenizer)  # type: ignore[arg-type]
        require_rows_for_ids(tokenizer, found, f"Model {where!r}", writes=False)
