"""What a run of a recipe returns: each section's stored result, and the differences that were measured now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydralign.evaluation.statistics import Difference
from hydralign.runs.section_files import RESULT, read_result


@dataclass(frozen=True)
class RunResult:
    """What came out, by section: `sft`, `reward` (or `reward/NAME` where it is a list), `ppo`, `compare`."""

    output: Path
    """The recipe's output folder; the models lie in OUT/<section>/model."""
    records: Mapping[str, Mapping[str, Any]]
    """Each section's evaluation.json: metrics with interval, n and verdict."""
    differences: Mapping[str, tuple[Difference, ...]]
    """Paired differences by section; none of one that was finished before, whose record has the same numbers."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every difference that was measured now, in a sentence."""
        return tuple(difference.sentence() for differences in self.differences.values() for difference in differences)

    @property
    def report(self) -> Path | None:
        """The page that the compare section wrote; None without one."""
        page = self.output / "report.html"
        return page if "compare" in self.records and page.exists() else None


def read_results(output: Path, titles: Sequence[str], differences: Mapping[str, Sequence[Difference]]) -> RunResult:
    """The stored results of these sections, with the differences that were measured now. Raises RunFolderError."""
    records = {title: read_result(output / title) for title in titles if (output / title / RESULT).exists()}
    return RunResult(output, records, {name: tuple(several) for name, several in differences.items()})
