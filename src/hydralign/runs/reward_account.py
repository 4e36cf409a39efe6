"""What a reward section says about its rows: what became of each, and what its figures are not to be trusted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydralign.data import DataSet
from hydralign.runs.reward_tests import LoadedTest
from hydralign.types import Preference


def describe_reward_rows(data: DataSet[Any], tests: Sequence[LoadedTest], left_out: Mapping[str, int]) -> str:
    """What became of every row that was read; of those that were used, why some are `left_out` all the same."""
    purposes = [f"to test on ({test.config.name})" if test.config.name else "to test on" for test in tests]
    lines = [data.report.describe()]
    lines += [test.data.report.describe(purpose=purpose) for test, purpose in zip(tests, purposes, strict=True)]
    lines += [f"Of them {count:,} {reason}: left out." for reason, count in left_out.items() if count]
    trained = {_shown(record) for record in data.train} if tests else set()
    of = "prompt" if isinstance(data.train[0], Preference) else "text"
    for test, purpose in zip(tests, purposes, strict=True):
        common = sum(_shown(record) in trained for record in test.data.train)
        if not common:
            continue
        lines.append(
            f"Of the rows {purpose}, {common:,} have the {of} of a training row: figures on test rows are too good by "
            "what was learned by heart. Test on other rows."
        )
    return "\n".join(lines)


def _shown(record: Any) -> str:
    """What decides whether a row was seen; blanks around it do not count, as in the split."""
    text: str = record.prompt if isinstance(record, Preference) else record.text
    return text.strip()
