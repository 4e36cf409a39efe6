"""Rows that a reward section is tested on when it is done: one source or several, each with labels of its own if need
be, and with accuracy by group where its data name groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hydralign.config.data import NoSplit, SourceConfig
from hydralign.config.reward import RewardConfig, RewardTestConfig
from hydralign.data import DataSet
from hydralign.errors import ConfigError, did_you_mean
from hydralign.evaluation.groups import GroupAccuracy, group_accuracies, group_table
from hydralign.methods.reward import Judged, Labelled, Pair
from hydralign.runs.reward_record import reward_record, sentence

NO_GROUP = "(none)"
"""The group of rows whose column is missing or null."""


class EncodedRows(NamedTuple):
    """Records as the classifier reads them."""

    rows: list[Any]
    places: list[int]
    """Which record each row was: those that cannot be used are left out."""
    cut: int
    """How many were too long."""


@dataclass(frozen=True)
class LoadedTest:
    """A source to test on, as the classifier reads it."""

    config: RewardTestConfig
    data: DataSet[Any]
    rows: Sequence[Pair] | Sequence[Labelled]
    groups: tuple[str, ...]
    """The group of each row; empty without `by`."""
    cut: int

    @property
    def title(self) -> str:
        """What its rows are called: test, or its name."""
        return self.config.name or "test"

    @property
    def side(self) -> str:
        """What it is called beside train and held out: test, or test and its name."""
        return f"test {self.config.name}" if self.config.name else "test"


def tests_of(config: RewardConfig) -> tuple[RewardTestConfig, ...]:
    """Every source to test on."""
    if config.test is None:
        return ()
    return config.test if isinstance(config.test, tuple) else (config.test,)


def without_held_out(source: SourceConfig) -> SourceConfig:
    """The source with nothing held out: all of its rows are judged."""
    return source.model_copy(update={"held_out": NoSplit()})


def load_tests(
    config: RewardConfig,
    load: Callable[[SourceConfig], DataSet[Any]],
    encode_rows: Callable[..., EncodedRows],
    labels: Sequence[str],
) -> tuple[LoadedTest, ...]:
    """Every source to test on; `labels` are the classifier's. Raises ConfigError and DataError."""
    loaded = []
    for test in tests_of(config):
        data = load(without_held_out(test))
        require_group_column(test, {name for record in data.train for name in record.columns})
        own = own_label_columns(test, labels)
        encoded = encode_rows(data.train, **({"column_of": own} if own else {}))
        groups = [data.train[place].columns.get(test.by) for place in encoded.places] if test.by else []
        named = tuple(NO_GROUP if group is None else str(group) for group in groups)
        loaded.append(LoadedTest(test, data, encoded.rows, named, encoded.cut))
    return tuple(loaded)


def require_group_column(test: RewardTestConfig, columns: Iterable[str]) -> None:
    """Raise ConfigError for groups by a column that no row has."""
    if test.by is not None and test.by not in (there := set(columns)):
        raise ConfigError(
            f"{_key(test)}.by={test.by!r}: no row to test on has such a column, so there are no groups. "
            f"{did_you_mean(test.by, there) if there else 'The rows have no other columns. Leave by out.'}"
        )


def own_label_columns(test: RewardTestConfig, labels: Sequence[str]) -> dict[str, int]:
    """Label in these rows: the classifier's output that it is; empty where they have the training rows' labels.

    Raises ConfigError for a name that the classifier does not have.
    """
    for label, name in test.names.items():
        if name not in labels:
            raise ConfigError(
                f"{_key(test)}.names calls {label!r} {name!r}, which is no label of the classifier: no answer about "
                f"such rows could be right. {did_you_mean(name, labels)}"
            )
    return {label: labels.index(name) for label, name in test.names.items()}


def records_of_tests(results: Sequence[tuple[LoadedTest, Judged]], labels: Sequence[str]) -> dict[str, Any]:
    """The judgement of every test as plain JSON: that of a source without a name in `test`, others by name in `tests`.

    With groups, `by` says of what and `groups` has n and accuracy with its interval for each.
    """
    records: dict[str | None, Any] = {}
    for test, judged in results:
        by_group = {one.group: _without_name(one) for one in _accuracies(test, judged)}
        grouped = {"by": test.config.by, "groups": by_group} if test.config.by else {}
        records[test.config.name] = reward_record(judged, labels) | grouped
    single = records.pop(None, None)
    return {"test": single, **({"tests": records} if records else {})}


def describe_test(test: LoadedTest, judged: Judged, labels: Sequence[str]) -> str:
    """The judgement of one test in sentences, and a table of its groups."""
    lines = [f"On {test.title} rows: {sentence(judged, labels)}"]
    if test.config.by:
        lines.append(f"Accuracy on {test.title} rows by {test.config.by}, with 95 % intervals:")
        lines += group_table(_accuracies(test, judged))
    return "\n".join(lines)


def _accuracies(test: LoadedTest, judged: Judged) -> Sequence[GroupAccuracy]:
    return group_accuracies(judged.right_N.numpy(), test.groups) if test.config.by else ()


def _without_name(one: GroupAccuracy) -> Mapping[str, Any]:
    return {key: value for key, value in asdict(one).items() if key != "group"}


def _key(test: RewardTestConfig) -> str:
    return f"reward.test (name: {test.name})" if test.name else "reward.test"
