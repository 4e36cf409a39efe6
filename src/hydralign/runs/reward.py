"""A recipe's reward section from beginning to end: load, measure, train, calibrate, measure again, save, report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from hydralign.config import Recipe
from hydralign.config.data import SourceConfig
from hydralign.config.reward import Comparisons, Labels, RewardConfig
from hydralign.data import DataSet, choose_rows, fingerprint, load_comparisons, load_labelled
from hydralign.data.special_tokens import recount_special_tokens
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError, DataError
from hydralign.evaluation import baselines
from hydralign.evaluation.calibration import divide_by_temperatures_of_others, fit_temperature, temperature_doubt
from hydralign.evaluation.statistics import Difference, compare_paired
from hydralign.methods.reward import (
    Judged,
    Labelled,
    Pair,
    RewardParts,
    cropped_once,
    judge_labels,
    judge_logits,
    judge_pairs,
    outputs_of,
    train_on_labels,
    train_on_pairs,
)
from hydralign.models.classifiers.training import SequenceClassifier, load_sequence_classifier, wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.folders.merged import load_tokenizer
from hydralign.progress import say
from hydralign.rewards.classifier import encode_for_classifier
from hydralign.rewards.reward_model import chat_end, encode
from hydralign.runs.reward_account import describe_reward_rows
from hydralign.runs.reward_record import baseline_of, reward_record, sentence
from hydralign.runs.reward_tests import EncodedRows, LoadedTest, describe_test, load_tests, records_of_tests
from hydralign.runs.section import load_or_measure_numbers, open_section
from hydralign.runs.section_files import RESULT, write_json
from hydralign.runs.section_model import load_or_make
from hydralign.runs.steps import Step
from hydralign.types import LabelledText, Preference

EQUAL = "have answers that are equal as the model reads them"
EMPTY = "have no token that the model could read"


class _Start(NamedTuple):
    """A classifier, data, and what makes of records the rows that can be used, and counts those that were too long."""

    classifier: SequenceClassifier
    data: DataSet[Any]
    encode_rows: Callable[..., EncodedRows]


@dataclass(frozen=True)
class LoadedReward:
    """What a reward section works with."""

    classifier: SequenceClassifier
    report: str
    """What became of every row that was read, in a paragraph."""
    train: Sequence[Pair] | Sequence[Labelled]
    held_out: Sequence[Pair] | Sequence[Labelled]
    tests: Sequence[LoadedTest] = ()
    cut: Mapping[str, int] = field(default_factory=dict)
    """Rows whose beginning was cut off, by side."""
    measured: str = ""
    """Fingerprint of the records behind `held_out`."""


def run_reward(recipe: Recipe, step: Step, processes: Distributed) -> list[Difference]:
    """Train as an item of the `reward` section says, into its folder; returns the paired difference of accuracy to the
    one before training, and to the baseline.
    """
    config, folder = step.config, step.folder
    loaded = load_reward(recipe, config, processes)
    classifier, task, micro = loaded.classifier, config.task, config.batch.micro_batch_size
    judge: Any = judge_pairs if isinstance(task, Comparisons) else judge_labels
    if processes.main:
        say(loaded.report)
    with open_section(recipe, step, processes) as records:

        def judged() -> Judged:
            return judge(classifier, loaded.held_out, micro, processes)

        before = load_or_measure_numbers(
            folder / "before.json", loaded.measured, lambda: judged().right_N.tolist(), processes
        )
        parts: Any = RewardParts(classifier, loaded.train, loaded.held_out, folder, records, processes)
        if isinstance(task, Comparisons):
            train_on_pairs(config, parts, seed=recipe.seed)
        else:
            balanced = task.class_weights == "balanced"
            train_on_labels(config, parts, crops=task.crops, balanced=balanced, seed=recipe.seed)
        fitted = calibrated(loaded, task, micro, recipe.seed, processes) if isinstance(task, Labels) else None
        temperature, after = fitted or (None, judged())
        tests = [(one, judge(classifier, one.rows, micro, processes)) for one in loaded.tests if one.rows]
    difference = compare_paired("held-out accuracy", before, after.right_N.tolist(), unit="rows")
    baseline = baseline_of(after, classifier.labels)
    if processes.main:
        classifier.save(folder / "model")
        record: dict[str, Any] = {"held_out": reward_record(after, classifier.labels)}
        record |= records_of_tests(tests, classifier.labels)
        record |= {"temperature": temperature, "before": {"accuracy": difference.before_mean}}
        record |= {"cut": dict(loaded.cut), "sentence": baselines.verdict_sentence(difference, baseline)}
        write_json(folder / RESULT, record)
        say(record["sentence"])
        say(f"On held-out rows: {sentence(after, classifier.labels)}")
        for test, judgement in tests:
            say(describe_test(test, judgement, classifier.labels))
        say(f"The model lies in {folder / 'model'}.")
    processes.barrier()
    return [difference, *([baseline.above] if baseline.above else [])]


def calibrated(
    loaded: LoadedReward, task: Labels, micro: int, seed: int, processes: Distributed
) -> tuple[float, Judged] | None:
    """Fit a temperature on held-out texts and pieces of them and divide the outputs by it; None when not asked for.

    Returns it, and the judgement of the held-out texts with temperatures that were fitted on other ones: the text that
    is judged has no part in its own calibration.
    """
    if not task.calibrate:
        return None
    classifier = loaded.classifier
    texts: list[Any] = list(loaded.held_out)
    if task.crops:
        texts += cropped_once(texts, task.crops, classifier.tokenizer, seed)
    logits_NC = outputs_of(classifier, [text.ids for text in texts], micro, processes)
    labels = [text.label for text in texts]
    temperature = fit_temperature(logits_NC.numpy(), labels)
    groups = [text.ids for text in texts[: len(loaded.held_out)]] * (1 + bool(task.crops))
    divided_NC = torch.from_numpy(divide_by_temperatures_of_others(logits_NC.numpy(), labels, groups))
    classifier.divide_outputs(temperature)
    doubt = temperature_doubt(temperature)
    if doubt and processes.main:
        say(doubt)
    return temperature, judge_logits(divided_NC[: len(loaded.held_out)], texts[: len(loaded.held_out)])


def load_reward(recipe: Recipe, config: RewardConfig, processes: Distributed) -> LoadedReward:
    """Everything that a reward section needs, with every check that can be made before the first step."""
    pairs = isinstance(config.task, Comparisons)
    start, load = (_start_on_pairs, load_comparisons) if pairs else (_start_on_labels, load_labelled)
    classifier, data, encode_rows = start(recipe, config, reward_source(recipe, config), processes)
    chosen = choose_rows(data.held_out, config.evaluation.rows)
    tests = load_tests(config, partial(load, tokenizer=classifier.tokenizer), encode_rows, classifier.labels)
    train, held_out = encode_rows(data.train), encode_rows(chosen)
    used = [(data.train, train.rows), (chosen, held_out.rows), *((test.data.train, test.rows) for test in tests)]
    left_out = sum(len(records) - len(rows) for records, rows in used)
    report = describe_reward_rows(data, tests, {EQUAL if pairs else EMPTY: left_out})
    require_enough_rows(train.rows, held_out.rows, report)
    cut = {"train": train.cut, "held out": held_out.cut, **{test.side: test.cut for test in tests}}
    if counts := ", ".join(f"{count:,} of {side}" for side, count in cut.items() if count):
        report += f"\nLonger than {classifier.max_tokens:,} tokens, so cut at the beginning: {counts}."
    return LoadedReward(classifier, report, train.rows, held_out.rows, tests, cut, fingerprint(chosen))


def reward_source(recipe: Recipe, config: RewardConfig) -> SourceConfig:
    """The source of the comparisons or labelled texts. Raises ConfigError when the recipe names none."""
    kind = data_kind(config)
    source: SourceConfig | None = config.data or getattr(recipe.data, kind)
    if source is None:
        raise ConfigError(
            f"reward.task is {config.task.type}, and neither reward.data nor data.{kind} names a source: there is "
            "nothing to learn from. Name one."
        )
    return source


def data_kind(config: RewardConfig) -> str:
    """The kind of the recipe's data that the section learns from, unless it names data of its own."""
    return "comparisons" if isinstance(config.task, Comparisons) else "labelled"


def _start_on_pairs(recipe: Recipe, config: RewardConfig, source: SourceConfig, processes: Distributed) -> _Start:
    new = (config.model or recipe.model).new is not None
    data: DataSet[Preference] | None = load_comparisons(source) if new else None
    texts = [row.prompt + row.chosen for row in data.train] if data else []
    classifier = _classifier(recipe, config, ("score",), texts, processes)
    tokenizer = classifier.tokenizer
    data = recount_special_tokens(data, tokenizer) if data else load_comparisons(source, tokenizer)
    return _Start(classifier, data, partial(_pairs, classifier=classifier))


def _pairs(records: Sequence[Preference], classifier: SequenceClassifier) -> EncodedRows:
    """The comparisons as token ids without those that are EQUAL. Columns chosen_finished and rejected_finished say
    whether an answer ended by itself (EOS follows); without them, both did.
    """
    tokenizer = classifier.tokenizer
    pairs, places, cut, end = [], [], 0, chat_end(tokenizer)
    for place, record in enumerate(records):
        sides = [
            encode(tokenizer, record.prompt, end.sub("", answer), _is_finished(record, side), classifier.max_tokens)
            for side, answer in (("chosen", record.chosen), ("rejected", record.rejected))
        ]
        if sides[0].ids != sides[1].ids:
            cut += any(side.cut for side in sides)
            pairs.append(Pair(sides[0].ids, sides[1].ids))
            places.append(place)
    return EncodedRows(pairs, places, cut)


def _is_finished(record: Preference, side: str) -> bool:
    """Whether an answer ended: a column's yes or no, as text in CSV files. Raises DataError for anything else."""
    value = record.columns.get(f"{side}_finished", True)
    finished = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if finished is None:
        raise DataError(
            f"{side}_finished is {value!r} in a comparison: it decides whether the end token is learned. Write true or "
            "false in every row."
        )
    return finished


def _start_on_labels(recipe: Recipe, config: RewardConfig, source: SourceConfig, processes: Distributed) -> _Start:
    assert isinstance(config.task, Labels)
    path = (config.model or recipe.model).path
    data = load_labelled(source, load_tokenizer(path) if path else None)
    columns = label_columns(config.task, [row.label for row in data.train])
    names = tuple(dict.fromkeys(columns.values()))
    classifier = _classifier(recipe, config, names, [row.text for row in data.train], processes)
    column_of = {label: names.index(name) for label, name in columns.items()}
    encode_rows = partial(_labelled, column_of=column_of, classifier=classifier)
    return _Start(classifier, recount_special_tokens(data, classifier.tokenizer), encode_rows)


def label_columns(task: Labels, found: Sequence[str]) -> dict[str, str]:
    """Label in the data: name in the model, in the order of the model's outputs. Raises DataError."""
    present = sorted(set(found))
    columns = dict(task.names) or {label: label for label in present}
    unknown = [label for label in present if label not in columns]
    if unknown:
        raise DataError(
            f"reward.task.names has no name for the labels {', '.join(map(repr, unknown))} of the data: their rows "
            f"could not be learned. It names {', '.join(map(repr, columns))}. Add the others."
        )
    if len({columns[label] for label in present}) < 2:
        raise DataError(
            f"the data have the single label {', '.join(map(repr, present))}: a classifier needs two to tell apart. "
            "Name data with more, or other names in reward.task.names."
        )
    return columns


def _labelled(
    records: Sequence[LabelledText], column_of: Mapping[str, int], classifier: SequenceClassifier
) -> EncodedRows:
    """The texts that have tokens, as ids with their columns. Those that are too long keep their end."""
    tokenizer = classifier.tokenizer
    tokenizer.truncation_side = "left"
    encoded = [encode_for_classifier(tokenizer, record.text, classifier.max_tokens) for record in records]
    require_known_labels(records, column_of)
    rows = [Labelled(one.ids, column_of[record.label]) for one, record in zip(encoded, records, strict=True)]
    places = [place for place, row in enumerate(rows) if row.ids]
    return EncodedRows([rows[place] for place in places], places, sum(one.cut > 0 for one in encoded))


def require_known_labels(records: Sequence[LabelledText], known: Collection[str]) -> None:
    """Raise DataError for rows whose label nothing was trained on."""
    unknown = {record.label for record in records} - set(known)
    if unknown:
        raise DataError(
            f"held-out or test rows have labels that training rows lack: {', '.join(map(repr, sorted(unknown)))}. "
            "No answer about them could be right. Leave them out, train on them too, or map them with "
            "test.names."
        )


def require_finished(sets: Sequence[Sequence[Preference]]) -> None:
    """Raise DataError for a comparison whose columns do not say by yes or no whether an answer ended."""
    for record in (record for records in sets for record in records):
        for side in ("chosen", "rejected"):
            _is_finished(record, side)


def require_enough_rows(train: Sequence[Any], held_out: Sequence[Any], report: str) -> None:
    """Raise DataError, with the report on what became of all rows, unless some are to learn and some to measure."""
    if not train or len(held_out) < 2:
        raise DataError(
            f"{len(train)} rows to train on and {len(held_out)} held out: at least one and two are needed, or nobody "
            f"could tell whether it was learned. Name more rows, or hold out others (held_out).\n{report}"
        )


def _classifier(
    recipe: Recipe,
    config: RewardConfig,
    labels: tuple[str, ...],
    texts: Sequence[str],
    processes: Distributed,
) -> SequenceClassifier:
    return load_or_make(
        config.model or recipe.model,
        texts,
        load=partial(load_sequence_classifier, labels=labels),
        make=partial(make_classifier, labels=labels),
        wrap=wrap_classifier,
        device=processes.device,
        seed=recipe.seed,
        freeze_layers=config.freeze_layers,
        max_tokens=config.max_tokens,
    )
