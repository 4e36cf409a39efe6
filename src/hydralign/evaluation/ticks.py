"""Ticks of a figure's axes: where they stand, and labels short enough for the room there is.

Numbers of a million and more, or below a thousandth, share a power of ten that is named once, beside the unit. Numbers
that differ only in their last digits are shown as what is added to the first. The page sets the type, so the room that
a label needs is estimated from its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHARACTER = 6.4
"""Pixels that a digit takes at the figures' size of type, with some to spare."""

_LONGEST = 9
"""Characters of a label beyond which only the difference to the first tick is shown."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Ticks:
    """Places on an axis, a label for each, and what has to be said once about all of them (or nothing)."""

    places: Floats
    labels: list[str]
    note: str = ""

    @property
    def longest(self) -> float:
        """Pixels of the widest label."""
        return CHARACTER * max(map(len, self.labels), default=0)

    def apart(self, low: float, high: float, pixels: float) -> bool:
        """Whether labels side by side leave a gap, on an axis from `low` to `high` that is so many pixels long."""
        if len(self.places) < 2:
            return True
        gap = float(np.diff(self.places).min()) / (high - low) * pixels
        return gap >= self.longest + CHARACTER


def round_ticks(
    low: float, high: float, most: int, *, whole: bool = False, bounds: tuple[float, float] | None = None
) -> Ticks:
    """Round numbers that cut an axis from `low` to `high` into at most `most` steps, those within `bounds` (or on the
    axis) of them; whole numbers only, where that is asked for.
    """
    places = np.asarray(round_numbers(most, whole=whole).tick_values(low, high))
    if whole:
        places = np.unique(np.round(places))
    first, last = bounds or (low, high)
    slack = 1e-9 * (high - low)
    places = places[(places >= first - slack) & (places <= last + slack)]
    return label_ticks(places if len(places) else np.array([(first + last) / 2]))


def fitting_ticks(draw: Callable[[int], Ticks], low: float, high: float, pixels: float, most: int) -> Ticks:
    """`draw(n)` with the largest n up to `most` whose labels stand apart; with n = 1 where none does."""
    for steps in range(most, 1, -1):
        ticks = draw(steps)
        if ticks.apart(low, high, pixels):
            return ticks
    return draw(1)


def round_numbers(most: int, *, whole: bool = False) -> MaxNLocator:
    """matplotlib's locator with steps that people count in."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)


def label_ticks(places: Floats) -> Ticks:
    """Labels with as many decimals as tell the ticks apart; four significant digits for one alone."""
    labels, note = _labels(places)
    if len(places) > 1 and max(map(len, labels)) > _LONGEST:
        base = float(places[0])
        labels, power = _labels(places - base)
        labels = [label if label.startswith("−") else f"+{label}" for label in labels]
        note = f"{_signed(f'{base:.15g}')} + …" + (f" {power}" if power else "")
    return Ticks(places, labels, note)


def _labels(places: Floats) -> tuple[list[str], str]:
    """Plain numbers where they are no longer than with a power of ten, or barely; else with one."""
    largest = float(np.abs(places).max()) if len(places) else 0.0
    if largest == 0 or 1e-3 <= largest < 1e6:
        return _numbers(places), ""
    exponent = 3 * math.floor(math.log10(largest) / 3)
    scaled = _numbers(places / 10.0**exponent)
    if largest >= 1 and len(plain := _numbers(places)) and max(map(len, plain)) <= max(map(len, scaled)) + 1:
        return plain, ""
    return scaled, f"×10{str(exponent).translate(_RAISED)}"


def _numbers(places: Floats) -> list[str]:
    step = float(np.diff(places).min()) if len(places) > 1 else float(np.abs(places).max()) / 100
    digits = next((d for d in range(15) if np.all(np.abs(np.round(places, d) - places) <= 0.02 * abs(step))), 15)
    return [_signed(f"{x:z,.{digits}f}") for x in places]


def _signed(number: str) -> str:
    return number.replace("-", "−")


def caption(unit: str, note: str, pixels: float) -> str:
    """The unit with the note in brackets; a unit that would not fit is cut, and ends in an ellipsis."""
    room = int(pixels / CHARACTER) - (len(note) + 3 if note else 0)
    shown = unit if len(unit) <= room else f"{unit[: max(1, room - 1)].rstrip()}…"
    return f"{shown} ({note})" if note and unit else shown or note


def overhang(ticks: Sequence[tuple[float, str]], end: float, pixels_per_unit: float) -> float:
    """Pixels by which the widest reach of a centred label lies beyond `end` of the axis."""
    return max((CHARACTER * len(label) / 2 - abs(end - place) * pixels_per_unit for place, label in ticks), default=0.0)
