"""Where a report's numbers come from: the source of its held-out prompts, and how good the models that scored are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydralign.config.data import SourceConfig, SourceSplit
from hydralign.runs.section_files import RESULT, read_object


def held_out_source(source: SourceConfig) -> str:
    """The files, or the data set and its split, that held-out rows are read from."""
    if isinstance(source.held_out, SourceSplit):
        return _described(source.held_out.source, source.held_out.split)
    return _described(source.source, source.split)


def reward_results(terms: Sequence[Any]) -> tuple[dict[str, str], list[str]]:
    """What is known of the reward models and classifiers among `terms` that a reward section made: their accuracy by
    name, for the report's foot, and the warnings about them, for its head. Models from elsewhere are left out.
    """
    accuracies: dict[str, str] = {}
    warnings: list[str] = []
    for term in terms:
        folder = Path(getattr(term, "path", "")).expanduser()
        result = folder.parent / RESULT
        if not hasattr(term, "path") or folder.name != "model" or not result.is_file():
            continue
        title = f"reward model {folder.parent}"
        judged = _judged(result)
        if title in accuracies or not judged:
            continue
        accuracies[title] = "\n".join(_accuracy(side, one) for side, one in judged.items())
        for side, one in judged.items():
            where = title if len(judged) == 1 else f"{title}, {side} rows"
            warnings += [f"{where}: {warning}" for warning in one.get("warnings", [])]
    return accuracies, warnings


def _judged(result: Path) -> dict[str, dict[str, Any]]:
    """The judgements on rows to test on by their names, or else that on held-out ones; none where the file has no
    accuracy.
    """
    try:
        record = read_object(result) or {}
        tests = {"test": record["test"]} if record.get("test") else record.get("tests") or {}
        judged = {side: dict(one) for side, one in (tests or {"held-out": record["held_out"]}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    complete = all({"accuracy", "ci_low", "ci_high", "n"} <= one.keys() for one in judged.values())
    return judged if complete else {}


def _accuracy(side: str, judged: dict[str, Any]) -> str:
    sentence = (
        f"accuracy {judged['accuracy']:.3f} on {judged['n']:,} {side} rows (95 % interval "
        f"{judged['ci_low']:.3f} to {judged['ci_high']:.3f})"
    )
    if baseline := judged.get("baseline"):
        sentence += f"; {baseline['answer']} gives {baseline['accuracy']:.3f}"
    if "balanced_accuracy" in judged:
        sentence += f"; balanced accuracy {judged['balanced_accuracy']:.3f}"
    return sentence


def _described(source: str | Sequence[str], split: str) -> str:
    sources = [source] if isinstance(source, str) else list(source)
    one_hub_id = len(sources) == 1 and not Path(sources[0]).expanduser().exists()
    return ", ".join(sources) + (f", split {split}" if one_hub_id else "")
