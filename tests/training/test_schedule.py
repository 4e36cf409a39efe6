"""The learning rate by iteration, worked by hand."""

from __future__ import annotations

from typing import Literal

import pytest

from hydralign.training.schedule import learning_rate_at


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("constant", [0.4, 0.8, 1.2, 1.2, 1.2, 1.2]),
        ("linear", [0.4, 0.8, 1.2, 0.9, 0.6, 0.3]),
        ("cosine", [0.4, 0.8, 1.2, 1.0242640687, 0.6, 0.1757359313]),
    ],
)
def test_rate_rises_over_the_warm_up_then_decays(
    decay: Literal["constant", "linear", "cosine"], rates: list[float]
) -> None:
    found = [learning_rate_at(step, steps=6, peak=1.2, warmup_steps=2, decay=decay) for step in range(6)]
    assert found == pytest.approx(rates)


def test_without_warm_up_the_first_iteration_has_the_peak() -> None:
    assert learning_rate_at(0, steps=10, peak=3e-6, warmup_steps=0, decay="linear") == 3e-6
