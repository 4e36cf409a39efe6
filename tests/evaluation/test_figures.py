"""Figures: bins and words counted by hand, ids and colours fit for a page, and no numbers that they choke on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from hydralign.evaluation import figures, ticks
from hydralign.evaluation.figures import change_histogram, curve, histograms, interval_strip

NAN, INF = math.nan, math.inf

Draw = Callable[..., str]


def both(values: list[float], **words: str) -> str:
    return histograms(values, values[::-1], **words)  # type: ignore[arg-type]


def over_steps(values: list[float], **words: str) -> str:
    return curve(range(len(values)), values, **words)


DRAWS: dict[str, Draw] = {"histograms": both, "change": change_histogram, "curve": over_steps}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def described(svg: str) -> str:
    found = re.search(r"<desc[^>]*>(.*?)</desc>", svg)
    assert found
    return found[1]


def longest_path(svg: str) -> int:
    return max(len(re.findall(r"[ML] ", path)) for path in re.findall(r' d="([^"]*)"', svg))


@each_draw
@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.5],
        [0.0],
        [2.0] * 50,
        [0.1] * 49 + [0.1 + 1e-17],
        [1e15 + 0.5, 1e15 + 0.6],
        [NAN] * 5,
        [1.0, NAN, 3.0, NAN, NAN, -2.5],
        [NAN, *map(float, range(60)), INF, -INF],
        [1e300, 1e-300, 1.0],
        [-1e99, 1e99],
        [1e-12, 2e-12, -1e-12],
        [0.0, 1.0] * 10,
    ],
)
def test_odd_numbers_are_drawn_without_a_warning(draw: Draw, values: list[float]) -> None:
    svg = draw(values, key="k", title="t")
    ElementTree.fromstring(svg)
    assert "nan" not in svg.lower()
    kept = sum(abs(x) < 1e100 for x in values)
    assert f"{kept} values" in svg if kept else "no values" in svg


def test_description_tells_the_numbers() -> None:
    svg = histograms([1.0, 2.0, NAN], [3.0, 4.0, 5.0], key="k", title="t")
    assert "Before (dashed): 2 values from 1 to 2, mean 1.5." in described(svg)
    assert "After (filled): 3 values from 3 to 5, mean 4." in described(svg)
    told = described(curve([0, 1, 2], [NAN, 2.0, 8.0], key="k", title="t"))
    assert "mean 5" in told
    assert "The first is 2, the last 8." in told


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([3.0, 5.0, 4.0], [2.5, 3.5, 4.5, 5.5]),
        ([0.0, 1.0], [-0.5, 0.5, 1.5]),
        ([2.0, 2.0], [1.5, 2.5]),
        ([0.25, 0.25], [0.225, 0.275]),
        ([-0.25, 0.45], [-0.4, -0.2, 0.0, 0.2, 0.4, 0.6]),
    ],
)
def test_bins_are_centred_on_whole_numbers_or_end_on_round_ones(values: list[float], edges: list[float]) -> None:
    assert figures._edges(np.array(values)) == pytest.approx(np.array(edges))


def test_no_bin_holds_losses_and_gains_together() -> None:
    values = np.random.default_rng(0).normal(1.7, 3.1, 999)
    edges = figures._edges(values)
    assert np.abs(edges).min() < 1e-12
    assert len(edges) <= 34
    assert edges[0] <= values.min() < values.max() <= edges[-1]


def test_bins_and_ticks_go_in_steps_that_people_count_in() -> None:
    assert np.diff(figures._edges(np.linspace(0.1, 59.9, 1000))).tolist() == [5.0] * 12  # and not 3 by 3
    svg = histograms(np.linspace(0.1, 59.9, 1000), [], key="k", title="t")
    assert re.findall(r">(\d+)</text>", svg)[:4] == ["0", "20", "40", "60"]


def test_shares_are_in_percent_of_each_side() -> None:
    edges = np.array([0.5, 1.5, 2.5])
    assert figures._percent(np.array([1.0, 1.0, 2.0, 2.0]), edges).tolist() == [50.0, 50.0]
    assert figures._percent(np.array([]), edges).tolist() == [0.0, 0.0]


def test_long_curves_are_thinned_to_bin_means() -> None:
    assert figures._thinned(np.arange(4000.0)).tolist() == [10 * i + 4.5 for i in range(400)]
    assert figures._thinned(np.arange(400.0)).tolist() == list(range(400))
    svg = curve(range(100_000), np.sin(np.arange(100_000)), key="k", title="t")
    assert longest_path(svg) <= 401
    assert len(svg) < 40_000
    assert "The first is" in described(svg)


def test_running_mean_spans_gaps_but_does_not_fill_them() -> None:
    smooth = figures._running_mean(np.array([1.0, 2.0, NAN, 4.0, 9.0]), 2)
    assert smooth == pytest.approx([1.5, 1.5, NAN, 6.5, 6.5], nan_ok=True)


def test_points_between_gaps_stand_alone() -> None:
    assert figures._stands_alone(np.array([1.0, NAN, 2.0, 3.0, NAN, 4.0])).tolist() == [1, 0, 0, 0, 0, 1]
    assert "<use" in curve([0], [1.0], key="k", title="t")
    assert "<use" not in curve([0, 1], [1.0, 2.0], key="k", title="t")


@each_draw
def test_equal_arguments_give_equal_text_whatever_the_style(draw: Draw) -> None:
    values = [0.5, 1.5, NAN, 2.25]
    first = draw(values, key="k", title="t")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.marker": "s", "svg.fonttype": "path"}):
        own = dict(matplotlib.rcParams)
        assert draw(values, key="k", title="t") == first
        assert dict(matplotlib.rcParams) == own


@each_draw
def test_colours_and_type_are_the_pages_own(draw: Draw) -> None:
    svg = draw([0.5, 1.5, NAN, 2.25], key="k", title="t", unit="nats")
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
        "none", "currentColor", "var(--before, #6b7280)", "var(--after, #0b62a8)",
    }  # fmt: skip
    assert {*re.findall(r"font-family: ([^;\"]+)", svg)} == {"inherit"}
    for text in re.findall(r"<text[^>]*>", svg):
        assert "fill: currentColor" in text
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_ids_belong_to_their_figure() -> None:
    one, other = (histograms([0.5, NAN], [1.5, 2.5], key=key, title="t") for key in ("one", "other"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert not ids[0] & ids[1]
    assert all(name.startswith("one-") for name in ids[0])
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', one))
    assert used
    assert used <= ids[0]
    assert ids[0] == used | {"one-title", "one-about"}


def test_titles_are_escaped_and_units_are_no_formulas() -> None:
    svg = histograms([1.0, 2.0], [2.0], key="k", title="</svg><script>&", unit="$nats$ per_answer")
    root = ElementTree.fromstring(svg)
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "</svg><script>&"
    assert ">$nats$ per_answer</text>" in svg


@pytest.mark.parametrize(
    ("numbers", "places"),
    [
        ((2.0, 1.0, 4.0), (87.0, 73.5, 114.0)),
        ((-2.0, -4.0, -1.0), (33.0, 6.0, 46.5)),
        ((0.0, 0.0, 0.0), (60.0, 60.0, 60.0)),
        ((NAN, NAN, INF), (60.0, 60.0, 60.0)),
    ],
)
def test_strip_has_no_change_in_the_middle(
    numbers: tuple[float, float, float], places: tuple[float, float, float]
) -> None:
    strip = interval_strip(*numbers)
    place = partial(re.search, string=strip)
    found = [place(r'cx="([\d.]+)"'), place(r'interval" x1="([\d.]+)"'), place(r'interval".*x2="([\d.]+)"')]
    assert tuple(float(at[1]) for at in found if at) == places
    assert 'class="zero" x1="60"' in strip


def width_and_texts(svg: str) -> tuple[float, list[tuple[float, str, str]]]:
    """The drawing's width; of every text its place, its anchor and itself."""
    root = ElementTree.fromstring(svg)
    texts = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        style = f"{text.get('style')};"
        anchor = re.search(r"text-anchor: (\w+)", style)
        place = text.get("x") or re.findall(r"translate\(([-\d.]+)", text.get("transform") or "")[0]
        texts.append((float(place), anchor[1] if anchor else "start", text.text or ""))
    return float((root.get("viewBox") or "").split()[2]), texts


SPREADS: dict[str, list[float]] = {
    "one value": [3.0] * 9,
    "one fraction": [0.25] * 9,
    "two values": [0.123, 0.125] * 9,
    "tiny": np.linspace(1e-5, 3e-5, 50).tolist(),
    "huge": np.linspace(-2e6, 3e6, 50).tolist(),
    "huge and close": np.linspace(1e6, 1e6 + 7, 50).tolist(),
    "beyond": np.linspace(1e15, 1e15 + 4, 50).tolist(),
    "negative": np.linspace(-14500, -8000, 50).tolist(),
    "whole": [*range(990, 1031)],
    "one row": [1.5],
}


@each_draw
@pytest.mark.parametrize("name", SPREADS)
def test_every_label_lies_within_the_figure_and_beside_its_neighbours(name: str, draw: Draw) -> None:
    width, texts = width_and_texts(draw(SPREADS[name], key="k", title="t", unit="a long unit of measure " * 4))
    reach = {"start": (0.0, 1.0), "middle": (-0.5, 0.5), "end": (-1.0, 0.0)}
    for place, anchor, text in texts:
        left, right = (place + 6 * len(text) * side for side in reach[anchor])
        assert left > -3, text
        assert right < width + 3, text
    centred = sorted((place, text) for place, anchor, text in texts if anchor == "middle")
    for (place, text), (following, other) in pairwise(centred):
        assert following - place > 3 * (len(text) + len(other)), (text, other)
    assert centred


@pytest.mark.parametrize(("values", "tick"), [([24.0] * 50, "24"), ([0.25] * 50, "0.25"), ([2e-6], "2"), ([0.0], "0")])
def test_one_value_is_a_bar_with_its_number_below(values: list[float], tick: str) -> None:
    svg = histograms(values, values, key="k", title="t", unit="unit")
    width, texts = width_and_texts(svg)
    assert [text for _, anchor, text in texts if anchor == "middle"] == [tick]
    bar = next(path for path in re.findall(r'<path d="([^"]*)" clip-path', svg) if path.count("L") >= 3)
    places = [float(x) for x in re.findall(r"[ML] ([\d.]+)", bar)]
    assert max(places) - min(places) < width / 4


def test_few_whole_numbers_are_all_labelled() -> None:
    svg = histograms([0.0, 1.0], [1.0], key="k", title="t")
    assert [text for _, anchor, text in width_and_texts(svg)[1] if anchor == "middle"] == ["0", "1"]


def test_powers_of_ten_and_long_numbers_are_named_once_beside_the_unit() -> None:
    assert ticks.label_ticks(np.array([0.0, 1e-5, 2e-5])).labels == ["0", "10", "20"]
    assert ticks.label_ticks(np.array([0.0, 1e-5, 2e-5])).note == "×10⁻⁶"
    assert ticks.label_ticks(np.array([-2.5e6, 0.0, 2.5e6])).labels == ["−2.5", "0.0", "2.5"]
    assert ticks.label_ticks(np.array([999_995.0, 1e6])).labels == ["999,995", "1,000,000"]
    far = ticks.label_ticks(np.array([1e15, 1e15 + 2]))
    assert (far.labels, far.note) == (["+0", "+2"], "1e+15 + …")
    assert ticks.caption("nats", "×10⁶", 300) == "nats (×10⁶)"
    assert ticks.caption("", "×10⁶", 300) == "×10⁶"
    assert ticks.caption("n" * 60, "×10⁶", 300).endswith("n… (×10⁶)")


def test_no_value_is_lost_at_the_outer_edges() -> None:
    for values in ([0.123, 0.125], [0.1, 0.7], [-0.3, 0.3], [1e-9, 3e-9]):
        assert figures._percent(np.array(values), figures._edges(np.array(values))).sum() == pytest.approx(100)
