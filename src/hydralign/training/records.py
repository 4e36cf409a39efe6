"""Where a run's metrics go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydralign.tracking import JsonLines, Tracker


@dataclass(frozen=True)
class Records:
    """Where a section's metrics go. `local` is the file that is cut back when a run resumes; None where nothing is
    written, which is on all processes but the main one.
    """

    tracker: Tracker
    local: JsonLines | None


class Silent:
    """The tracker of processes that do not write."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
