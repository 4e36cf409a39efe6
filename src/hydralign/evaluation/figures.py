"""Small figures as SVG text, to stand inside a page: histograms before and after, changes, curves, interval strips.

Each function is pure: equal arguments give equal text, with no date in it and no global setting left behind. Lines and
words take the page's own colours and type: `currentColor`, `var(--before)`, `var(--after)`; before is dashed and after
filled, so colour is never the only sign. `key` makes the ids of a figure its own among several on a page; it must be
letters, digits and hyphens. Numbers that are NaN or infinite are gaps; they are left out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hydralign.evaluation.ticks import caption, fitting_ticks, label_ticks, overhang, round_numbers, round_ticks

Floats = NDArray[np.float64]
Numbers = Sequence[float] | Floats

# Colours that occur nowhere else, so that they can be found in the SVG and replaced by the page's.
_INK, _BEFORE, _AFTER = "#010203", "#010204", "#010205"
_PAGE_COLOURS = {_INK: "currentColor", _BEFORE: "var(--before, #6b7280)", _AFTER: "var(--after, #0b62a8)"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.formatter.useoffset": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.02,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.pad": 5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_LARGEST = 1e100
"""Beyond this a number is a gap: squares and spans of such numbers overflow."""

SMALL, LARGE = 300, 350
"""Widths in pixels that a figure is drawn for; words keep a readable size from a little below to half above that."""

_MOST_BINS, _MOST_POINTS = 32, 400
_FEW_BINS = 7
"""An axis is at least so many bins wide, so that one value is a bar and not a block."""


def histograms(before: Numbers, after: Numbers, *, key: str, title: str, unit: str = "", width: int = SMALL) -> str:
    """Both distributions over shared bins, in percent of each side's prompts: before a dashed outline, after filled."""
    old, new = _finite(before), _finite(after)
    edges = _edges(np.concatenate([old, new]))
    with _figure(width) as (figure, axes):
        axes.stairs(_percent(new, edges), edges, fill=True, color=_AFTER, alpha=0.28, lw=0)
        axes.stairs(_percent(new, edges), edges, color=_AFTER, lw=1.4)
        axes.stairs(_percent(old, edges), edges, color=_BEFORE, lw=1.6, ls=(0, (3, 2)))
        _label_bins(figure, axes, edges, unit, np.concatenate([old, new]))
        sides = " ".join(
            f"{name}: {_describe(values)}." for name, values in (("Before (dashed)", old), ("After (filled)", new))
        )
        return _svg(figure, key, title, f"Two histograms. {sides}")


def change_histogram(change: Numbers, *, key: str, title: str, unit: str = "", width: int = SMALL) -> str:
    """Distribution of after − before in percent of prompts, with a line at no change and a dotted one at the mean."""
    values = _finite(change)
    with _figure(width) as (figure, axes):
        edges = _edges(np.append(values, 0.0))
        axes.stairs(_percent(values, edges), edges, fill=True, color=_AFTER, alpha=0.28, lw=0)
        axes.stairs(_percent(values, edges), edges, color=_AFTER, lw=1.4)
        axes.axvline(0, color=_INK, lw=1, alpha=0.7)
        if len(values):
            axes.axvline(float(values.mean()), color=_AFTER, lw=1.6, ls=(0, (1, 1.5)))
        _label_bins(figure, axes, edges, unit, values)
        return _svg(figure, key, title, f"Histogram of the change per prompt: {_describe(values)}.")


def curve(steps: Numbers, values: Numbers, *, key: str, title: str, unit: str = "") -> str:
    """One training curve: a thin line through every iteration (bin means beyond 400) and its running mean in bold.

    The running mean is over a twentieth of the points and is left out below 40 of them. Gaps stay gaps.
    """
    steps_N, values_N = _gapped(steps), _gapped(values)
    known = np.isfinite(steps_N)
    steps_N, values_N = _thinned(steps_N[known]), _thinned(values_N[known])
    smooth = len(values_N) >= 40
    with _figure(SMALL) as (figure, axes):
        axes.plot(steps_N, values_N, color=_AFTER, lw=0.8 if smooth else 1.4, alpha=0.45 if smooth else 1)
        single = _stands_alone(values_N)
        axes.plot(steps_N[single], values_N[single], "o", color=_AFTER, ms=3, mew=0)
        if smooth:
            axes.plot(steps_N, _running_mean(values_N, len(values_N) // 20), color=_AFTER, lw=1.8)
        finite_N = _finite(values_N)
        _label(figure, axes, unit, "iteration", whole=True, places=_only(steps_N))
        if not len(finite_N):
            _write_empty(axes)
        ends = f" The first is {finite_N[0]:.4g}, the last {finite_N[-1]:.4g}." if len(finite_N) else ""
        return _svg(figure, key, title, f"A line over training iterations: {_describe(finite_N)}.{ends}")


def interval_strip(mean: float, low: float, high: float) -> str:
    """A difference and its interval on a scale of their own, with a line at no change, in the middle.

    Decoration beside the numbers: hidden from screen readers. The scale reaches the interval's outer bound, so strips
    show on which side of 0 an interval lies and how wide it is for its distance, and are not comparable in size.
    """
    reach = max(map(abs, (mean, low, high)))
    reach = reach if 0 < reach < math.inf else 1.0
    middle, left, right = (round(60 + 54 * x / reach, 1) if math.isfinite(x) else 60.0 for x in (mean, low, high))
    return (
        '<svg class="strip" viewBox="0 0 120 16" aria-hidden="true" focusable="false">'
        '<line class="zero" x1="60" y1="0" x2="60" y2="16"/>'
        f'<line class="interval" x1="{left}" y1="8" x2="{right}" y2="8"/>'
        f'<circle class="mean" cx="{middle}" cy="8" r="3.5"/></svg>'
    )


@contextmanager
def _figure(width: int) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of so many pixels in our style; whatever style the caller's process has is left as it was."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        height = 0.55 * width
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((36 / width, 34 / height, 1 - 44 / width, 1 - 58 / height))
        yield figure, axes


def _label_bins(figure: Figure, axes: Axes, edges: Floats, unit: str, values: Floats) -> None:
    """Axes of a histogram: room on both sides of few bins, and ticks where there are bins."""
    width = float(np.diff(edges).min())
    missing = max(0.0, _FEW_BINS * width - float(edges[-1] - edges[0])) / 2
    reach = missing or 0.02 * float(edges[-1] - edges[0])
    axes.set_xlim(float(edges[0]) - reach, float(edges[-1]) + reach)
    axes.set_ylim(bottom=0, top=None if len(values) else 100)
    bounds = (float(edges[0]), float(edges[-1]))
    whole = bool(np.all(edges % 1 == 0.5))
    places = edges[:-1] + 0.5 if whole and len(edges) <= _FEW_BINS + 1 else _only(values)
    _label(figure, axes, "% of prompts", unit, whole=whole, bounds=bounds, places=places)
    if not len(values):
        _write_empty(axes)


def _label(
    figure: Figure,
    axes: Axes,
    above: str,
    below: str,
    *,
    whole: bool = False,
    bounds: tuple[float, float] | None = None,
    places: Floats | None = None,
) -> None:
    """Ticks with room for their labels, within `bounds` or at these `places`, and units in words: above the upright
    axis, and right under the level one.
    """
    width, height = (72 * inches for inches in figure.get_size_inches())
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    y_ticks = round_ticks(bottom, top, 4)
    margin = max(20.0, y_ticks.longest + 9)
    pixels = width - margin - 8
    x_ticks = fitting_ticks(
        lambda most: (
            round_ticks(left, right, most, whole=whole, bounds=bounds)
            if places is None
            else label_ticks(places[:: math.ceil(len(places) / most)])
        ),
        left,
        right,
        pixels,
        _FEW_BINS if places is not None else 6,
    )
    labelled = list(zip(x_ticks.places.tolist(), x_ticks.labels, strict=True))
    scale = pixels / (right - left)
    beyond = max(0.0, overhang(labelled, right, scale) - 8)
    margin = max(margin, overhang(labelled, left, scale))
    axes.set_position((margin / width, 34 / height, 1 - (margin + 8 + beyond) / width, 1 - 58 / height))
    axes.set_xticks(x_ticks.places, x_ticks.labels)
    axes.set_yticks(y_ticks.places, y_ticks.labels)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.spines["bottom"].set_alpha(0.4)
    axes.grid(axis="y", color=_INK, alpha=0.12, lw=0.8)
    axes.set_axisbelow(True)
    figure.text(0, 1, caption(above, y_ticks.note, width), va="top", alpha=0.7)
    axes.set_xlabel(caption(below, x_ticks.note, pixels), loc="right", labelpad=3, alpha=0.7)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_alpha(0.85)


def _write_empty(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", alpha=0.7)


def _svg(figure: Figure, key: str, title: str, description: str) -> str:
    """The drawing as an `<svg>` element with a title and a description, in the page's colours and type."""
    matplotlib.rcParams["svg.hashsalt"] = key
    drawn = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    body = drawn.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box is not None
    body = re.sub(r"^.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)  # its `*` rule would reach the page
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{key}-", body)
    body = re.sub(r'font-family: [^;"]*', "font-family: inherit", body)
    for colour, name in _PAGE_COLOURS.items():
        body = body.replace(colour, name)
    return (
        f'<svg class="figure" {view_box[0]} role="img" aria-labelledby="{key}-title {key}-about" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-about">{escape(description)}</desc>' + body
    )


def _gapped(values: Numbers) -> Floats:
    found = np.array(values, dtype=np.float64)
    found[~(np.abs(found) < _LARGEST)] = np.nan
    return found


def _finite(values: Numbers) -> Floats:
    found = _gapped(values)
    return found[np.isfinite(found)]


def _edges(values: Floats) -> Floats:
    """Shared bin edges: one bin per whole number where all are whole and few, else equal bins between round numbers.

    Round numbers include 0, so that no bin holds losses and gains together.
    """
    if not len(values):
        return np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    if np.all(values == np.round(values)) and high - low < _MOST_BINS and max(abs(low), abs(high)) < 2**50:
        return np.arange(low - 0.5, high + 1.0)
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * largest:  # rounding noise is no spread
        return np.array([low - largest / 10, high + largest / 10])
    bins = 2 * math.ceil(1 + math.log2(len(values)))  # twice Sturges' number: two shapes are compared, not one shown
    edges = np.asarray(round_numbers(min(bins, _MOST_BINS)).tick_values(low, high))
    # A round number that is not exact in binary may lie a rounding error inside the values.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def _only(values: Floats) -> Floats | None:
    """The value that all of them have, up to rounding noise, alone; None where they differ or there are none."""
    if not len(values) or float(np.ptp(values)) > 1e-9 * float(np.abs(values).max()):
        return None
    return values[:1]


def _percent(values: Floats, edges: Floats) -> Floats:
    counts, _ = np.histogram(values, edges)
    return 100 * counts / max(1, len(values))


def _describe(values: Floats) -> str:
    """The numbers in words, for those who do not see the figure."""
    if not len(values):
        return "no values"
    return f"{len(values)} values from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"


def _thinned(values: Floats) -> Floats:
    """Means of equal runs of neighbours where there are more than 400 points; a run of gaps is a gap."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([_mean(run) for run in np.array_split(values, _MOST_POINTS)])


def _running_mean(values: Floats, width: int) -> Floats:
    """Centred mean of the known values within the window; a gap stays a gap."""
    half = width // 2
    means = [_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return np.where(np.isfinite(values), means, np.nan)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _stands_alone(values: Floats) -> NDArray[np.bool_]:
    """Points between gaps, which a line would not show."""
    known = np.pad(np.isfinite(values), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]
