"""One page that shows whether it worked: report.html to read, report.json for programs.

The page is one file without scripts or anything from outside. It shows the numbers it is given and draws no conclusion
of its own: verdicts and intervals come with the record (see `statistics`). What it chooses is which answers to show,
by rules that the page states: at random, best and worst after, most gained and most lost.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hydralign.errors import DataError
from hydralign.evaluation.figures import LARGE, Floats, change_histogram, curve, histograms, interval_strip
from hydralign.evaluation.rouge import ROUGE
from hydralign.evaluation.statistics import Verdict, decimals
from hydralign.files import write_text
from hydralign.tracking import as_json

Values = Mapping[str, tuple[Sequence[float], Sequence[float]]]

SAMPLES = 6
"""Answers shown per group."""

LONGEST_TEXT = 3000
"""Characters of one text that the page shows; with 30 samples this keeps the file below 2 MB."""

_WORDS = {
    "score": ("score", ""),
    "kl": ("KL divergence from the reference", "nats per answer"),
    "logprob_gap": ("log-probability gap to the reference (no KL: top-k or top-p)", "nats per answer"),
    "tokens": ("answer length", "tokens"),
    "finished": ("answers that ended by themselves", "share"),
    "rouge-1": ("ROUGE-1 to the human answer", ""),
    "rouge-2": ("ROUGE-2 to the human answer", ""),
    "rouge-l": ("ROUGE-L to the human answer", ""),
    "distinct-2": ("different word pairs (distinct-2)", "share"),
}
"""Metrics in plain words, with their units. Others keep their names."""

_CURVES = {
    "ppo/mean_scores": ("Reward", "mean score of the answers"),
    "objective/kl": ("KL divergence from the reference", "nats per answer"),
    "objective/logprob_gap": ("Log-probability gap to the reference (no KL: top-k or top-p)", "nats per answer"),
    "tokens/responses_len_mean": ("Answer length", "tokens"),
    "objective/entropy": ("Entropy of the policy", "nats per token"),
    "ppo/policy/clipfrac": ("Clipped updates", "share of tokens"),
}

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters but tab and newline, lone surrogates, and what is no character."""

_MARKS: dict[Verdict, str] = {"better": "✓", "worse": "✕", "not distinguishable": "≈"}


@dataclass(frozen=True)
class AnswerPair:
    """One held-out prompt, answered before and after; scores are of the primary metric, NaN where it does not apply."""

    prompt: str
    before: str
    after: str
    before_score: float
    after_score: float
    human: str = ""
    """A human's answer to the prompt; empty where none is known."""


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    `record` becomes report.json: numbers, texts, lists and mappings alone. Each of its `metrics` and `facts`, by name,
    has `before` and `after` (`mean`, `median`, `std`), `difference` (`mean`, `ci_low`, `ci_high`), `n`, and the `unit`
    that n counts unless that is prompts; a metric also `verdict`, `sentence`, `confidence`, `higher_is_better` and
    `primary`, true of exactly one. `about` maps titles to texts, `notes` lists texts. `values` holds each metric's
    numbers per prompt, before and after, NaN where it does not apply. `pairs` are all held-out prompts. `history` is
    the rows of the training run's metrics.jsonl, each with its `step`.
    """

    title: str
    record: Mapping[str, Any]
    values: Values
    pairs: Sequence[AnswerPair]
    history: Sequence[Mapping[str, Any]] = ()


def write_report(folder: Path, report: Report) -> tuple[Path, Path]:
    """Write report.json and report.html into `folder`, each whole or not at all; returns both paths, JSON first.

    The page stays below 2 MB: texts beyond 3000 characters are cut, and say so. NaN and infinity become null in JSON.
    Raises DataError for a record without exactly one primary metric, an unknown verdict, or values that are not paired,
    and TypeError for an object in the record that JSON does not have.
    """
    page = _page(report)
    record = json.dumps(as_json(report.record, strict=True), indent=2, ensure_ascii=False, allow_nan=False)
    paths = folder / "report.json", folder / "report.html"
    for path, text in zip(paths, (record + "\n", page), strict=True):
        write_text(path, text, errors="backslashreplace")  # lone surrogates, valid JSON this way
    return paths


@dataclass(frozen=True)
class _Number:
    """A number as it is printed, and what stands below it."""

    mean: str
    below: str


@dataclass(frozen=True)
class _Row:
    """One line of a table. What a fact does not have is empty."""

    label: str
    unit: str
    before: _Number
    after: _Number
    moved: _Number
    strip: Markup
    n: str
    primary: bool = False
    direction: str = ""
    verdict: str = ""
    mark: str = ""
    remark: str = ""


@dataclass(frozen=True)
class _Panel:
    title: str
    caption: str
    figure: Markup


@dataclass(frozen=True)
class _Group:
    title: str
    rule: str
    answers: list[tuple[int, AnswerPair]]
    """Each with the number of its prompt, counted from 1."""


def _page(report: Report) -> str:
    name, primary = _primary(report.record)
    rows = [_row(key, metric) for key, metric in report.record["metrics"].items()]
    rows.sort(key=lambda row: not row.primary)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.filters["number"] = _number
    source = files("hydralign.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=report.title,
        headline=_headline(rows[0], primary),
        primary=rows[0],
        confidence=f"{100 * primary['confidence']:g} %",
        notes=report.record.get("notes", []),
        metrics=rows,
        facts=[_row(key, fact) for key, fact in report.record.get("facts", {}).items()],
        large=list(_primary_panels(name, primary, report.values)),
        small=list(_other_panels(name, report.values)),
        curves=list(_curve_panels(report.history)),
        groups=list(_groups(report.pairs, higher_is_better=primary["higher_is_better"])),
        prompts=len(report.pairs),
        with_rouge=any(key in ROUGE for key in report.record["metrics"]),
        longest=LONGEST_TEXT,
        about=report.record.get("about", {}),
    )


def _primary(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    metrics: Mapping[str, Any] = record["metrics"]
    primary = [name for name, metric in metrics.items() if metric["primary"]]
    if len(primary) != 1:
        raise DataError(
            f"{len(primary)} of {len(metrics)} metrics are primary {primary}: one metric, named beforehand, decides "
            "what the headline says. Mark exactly one."
        )
    for name, metric in metrics.items():
        if metric["verdict"] not in get_args(Verdict):
            raise DataError(
                f"{name}: verdict {metric['verdict']!r}: a reader would not know what it means. "
                f"Use one of {', '.join(get_args(Verdict))}."
            )
    return primary[0], metrics[primary[0]]


def _headline(row: _Row, metric: Mapping[str, Any]) -> str:
    """What happened to the primary metric, to follow its verdict."""
    if row.before.mean == row.after.mean:
        return f"the mean {row.label} stayed at {row.before.mean}"
    direction = "rose" if metric["difference"]["mean"] > 0 else "fell"
    verb = "went" if row.verdict == "not distinguishable" else direction
    return f"the mean {row.label} {verb} from {row.before.mean} to {row.after.mean}"


def _row(name: str, entry: Mapping[str, Any]) -> _Row:
    """The line of a metric, or of a fact."""
    mean, low, high = (entry["difference"][bound] for bound in ("mean", "ci_low", "ci_high"))
    digits = decimals(low, high)
    label, unit = _in_words(name)
    before, after = (_side(entry[side], digits) for side in ("before", "after"))
    interval = f"{_number(low, digits, sign='+')} to {_number(high, digits, sign='+')}"
    counted = entry.get("unit", "prompts")
    line = _Row(
        label,
        unit,
        before,
        after,
        moved=_Number(_number(mean, digits, sign="+"), interval),
        strip=Markup(interval_strip(mean, low, high)),
        n=f"{entry['n']:,}" if counted == "prompts" else f"{entry['n']:,} {counted}",
    )
    if "verdict" not in entry:
        return line
    verdict = entry["verdict"]
    _, said, remark = entry["sentence"].partition(f": {verdict}.")
    return replace(
        line,
        primary=entry["primary"],
        direction="higher is better" if entry["higher_is_better"] else "lower is better",
        verdict=verdict,
        mark=_MARKS[verdict],
        remark=remark.replace("Warning: ", "").strip() if said else entry["sentence"],
    )


def _side(side: Mapping[str, float], digits: int) -> _Number:
    """A mean with its median and standard deviation."""
    mean, median, deviation = (_number(side[name], digits) for name in ("mean", "median", "std"))
    return _Number(mean, f"median\N{NO-BREAK SPACE}{median}, SD\N{NO-BREAK SPACE}{deviation}")


def _primary_panels(name: str, metric: Mapping[str, Any], values: Values) -> Iterator[_Panel]:
    if name not in values:
        return
    old, new = _paired(name, values)
    label, unit = _in_words(name)
    title, change = f"{_capital(label)} of the answers", "Change of each prompt"
    moved = (new - old)[np.isfinite(new - old)]
    gained = moved if metric["higher_is_better"] else -moved
    counts = [int(np.count_nonzero(side)) for side in (gained > 0, gained < 0, gained == 0)]
    counted = "{:,} better, {:,} worse, {:,} the same; dotted: the mean".format(*counts)
    spread = histograms(old, new, key="primary", title=_printable(title), unit=unit, width=LARGE)
    yield _Panel(title, f"{len(moved):,} prompts, each on both sides", Markup(spread))
    yield _Panel(change, counted, Markup(change_histogram(moved, key="change", title=change, unit=unit, width=LARGE)))


def _other_panels(primary: str, values: Values) -> Iterator[_Panel]:
    for place, name in enumerate(other for other in values if other != primary):
        label, unit = _in_words(name)
        old, new = _paired(name, values)
        drawn = histograms(old, new, key=f"values-{place}", title=_printable(label), unit=unit)
        yield _Panel(_capital(label), "", Markup(drawn))


def _curve_panels(history: Sequence[Mapping[str, Any]]) -> Iterator[_Panel]:
    """A panel for each curve that has a number; rows that tell of events have none and make no gap."""
    for place, (name, (title, unit)) in enumerate(_CURVES.items()):
        rows = [row for row in history if name in row]
        steps, values = [_or_gap(row["step"]) for row in rows], [_or_gap(row[name]) for row in rows]
        if any(map(math.isfinite, values)):
            yield _Panel(title, "", Markup(curve(steps, values, key=f"curve-{place}", title=title, unit=unit)))


def _groups(pairs: Sequence[AnswerPair], *, higher_is_better: bool) -> Iterator[_Group]:
    """Answers to show. Ties keep the order of the prompts; only what truly gained or lost is shown as such."""
    sign = 1 if higher_is_better else -1
    scored = [i for i, pair in enumerate(pairs) if math.isfinite(pair.after_score)]
    gains = {i: sign * (pair.after_score - pair.before_score) for i, pair in enumerate(pairs)}
    best = sorted(scored, key=lambda i: -sign * pairs[i].after_score)
    worst = sorted(scored, key=lambda i: sign * pairs[i].after_score)
    gained = sorted((i for i in gains if gains[i] > 0), key=lambda i: -gains[i])
    lost = sorted((i for i in gains if gains[i] < 0), key=lambda i: gains[i])
    drawn = sorted(random.Random(0).sample(range(len(pairs)), min(SAMPLES, len(pairs))))
    chosen = (
        ("Drawn at random", "by a fixed seed", drawn),
        ("Best after", "the best scores after", best),
        ("Worst after", "the worst scores after", worst),
        ("Most gained", "the biggest changes for the better", gained),
        ("Most lost", "the biggest changes for the worse", lost),
    )
    for title, rule, places in chosen:
        if places:
            yield _Group(title, rule, [(place + 1, pairs[place]) for place in places[:SAMPLES]])


def _paired(name: str, values: Values) -> tuple[Floats, Floats]:
    old, new = (np.asarray(side, dtype=np.float64) for side in values[name])
    if old.shape != new.shape:
        raise DataError(
            f"{name}: {len(old)} values before and {len(new)} after: each prompt needs one on both sides, in the same "
            "order, NaN where the metric does not apply. Evaluate both models on the same prompts."
        )
    return old, new


def _in_words(name: str) -> tuple[str, str]:
    return _WORDS.get(name, (name.replace("reward/", "reward: ").replace("judge/", "judge: "), ""))


def _capital(label: str) -> str:
    return label[:1].upper() + label[1:]


def _number(value: float, digits: int | None = None, sign: str = "") -> str:
    """With so many decimals, or three significant digits; a true minus sign; a dash for what is not a number."""
    if not math.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if value == 0 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:{sign}z,.{digits}f}".replace("-", "−")


def _or_gap(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _printable(value: Any) -> Any:
    """Text with every control character visible, for all that the template prints. Markup is ours and stays."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNPRINTABLE.sub(_picture, value.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    """Unicode's picture of a control character (␀ for NUL); the replacement character where there is none."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
