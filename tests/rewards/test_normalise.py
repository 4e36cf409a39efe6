"""Running moments against whole-batch statistics, and the order of scaling, clipping and penalty."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from hydralign.methods.ppo_state import PPOState, read_ppo_state
from hydralign.rewards import RunningMoments, shape_scores


def test_moments_of_parts_are_those_of_the_whole() -> None:
    scores_B = torch.tensor([1.0, 2.0, 4.0, 9.0])
    whole = RunningMoments().updated(scores_B)
    assert (whole.count, whole.mean, whole.m2) == (4, 4.0, 9.0 + 4.0 + 0.0 + 25.0)
    assert whole.std == pytest.approx(9.5**0.5)
    parts = RunningMoments().updated(scores_B[:1]).updated(scores_B[1:1]).updated(scores_B[1:])
    assert (parts.count, parts.mean, parts.m2) == pytest.approx((4, 4.0, 38.0), abs=1e-12)
    merged = RunningMoments().updated(scores_B[3:]).merged(RunningMoments().updated(scores_B[:3]))
    assert (merged.count, merged.mean, merged.m2) == pytest.approx((4, 4.0, 38.0), abs=1e-12)


def test_moments_keep_64_bits_far_from_zero() -> None:
    scores_B = torch.tensor([1e8, 1e8 + 8, 1e8 + 16], dtype=torch.float32)
    moments = RunningMoments().updated(scores_B[:2]).updated(scores_B[2:])
    assert moments.std == pytest.approx((128 / 3) ** 0.5, rel=1e-9)


def test_std_is_one_without_scores_and_when_all_are_equal() -> None:
    assert RunningMoments().std == 1.0
    assert RunningMoments().merged(RunningMoments()) == RunningMoments()
    equal = RunningMoments().updated(torch.full((3,), 0.1, dtype=torch.float64))
    assert 0 < equal.m2 < 1e-30  # rounding noise
    assert equal.std == 1.0
    assert RunningMoments().updated(torch.zeros(3)).std == 1.0


def test_moments_survive_a_checkpoint_bit_for_bit() -> None:
    moments = RunningMoments().updated(torch.rand(7, generator=torch.Generator().manual_seed(0)))
    stored = json.dumps(asdict(PPOState(moments=moments)))
    assert read_ppo_state(json.loads(stored)).moments == moments


def test_shape_scores_scales_then_clips_then_subtracts_the_penalty() -> None:
    scores_B = torch.tensor([8.0, -8.0, 1.0, 1.0])
    finished_B = torch.tensor([True, False, True, False])
    shaped_B = shape_scores(scores_B, finished_B, std=2.0, clip=3.0, missing_eos_penalty=1.5)
    assert shaped_B.tolist() == [3.0, -4.5, 0.5, -1.0]


def test_shape_scores_leaves_scores_alone_when_nothing_is_asked() -> None:
    scores_B = torch.tensor([8.0, -8.0])
    assert torch.equal(shape_scores(scores_B, torch.tensor([True, False])), scores_B)
