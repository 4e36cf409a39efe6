from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.algorithms.masked import Average
from hydralign.algorithms.value_losses import clipped_value_loss

VALUES_BR = torch.tensor([[1.0, 1.0, 3.0, 5.0]], dtype=torch.float64)
OLD_BR = torch.tensor([[0.5, 0.9, 2.0, 5.0]], dtype=torch.float64)
RETURNS_BR = torch.tensor([[2.0, 0.0, 2.0, 5.0]], dtype=torch.float64)
MASK_BR = torch.tensor([[True, True, True, False]])


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values_BR, old_BR, returns_BR = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    return values_BR, old_BR, returns_BR, torch.arange(5) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]


def loss_and_gradient(
    values_BR: Tensor, old_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    values_BR = values_BR.clone().requires_grad_()
    loss, _ = clipped_value_loss(values_BR, old_BR, returns_BR, mask_BR, **settings)
    return loss.detach(), torch.autograd.grad(loss, values_BR)[0]


def test_loss_of_three_hand_worked_tokens() -> None:
    # Clipped values 0.7, 1.0, 2.2: max(1, 1.69), max(1, 1), max(1, 0.04), halved and averaged: 3.69 ÷ 6.
    values_BR = VALUES_BR.clone().requires_grad_()
    loss, stats = clipped_value_loss(values_BR, OLD_BR, RETURNS_BR, MASK_BR, clip=0.2, count=3)
    assert loss.item() == pytest.approx(0.615, abs=1e-12)
    assert {name: total.item() for name, total in stats.items()} == {
        "value": 5.0,
        "value_squared_error": 3.0,
        "value_clipped": 1.0,
    }
    assert not any(total.requires_grad for total in stats.values())


def test_loss_is_half_the_squared_error_when_clipping_is_off() -> None:
    loss, stats = clipped_value_loss(VALUES_BR, OLD_BR, RETURNS_BR, MASK_BR, clip=None, count=3)
    assert loss.item() == 0.5
    assert stats["value_clipped"].item() == 0.0


def test_a_wide_clip_is_no_clip() -> None:
    values_BR, old_BR, returns_BR, mask_BR = random_case(0)
    wide = loss_and_gradient(values_BR, old_BR, returns_BR, mask_BR, clip=1e6, count=15)
    without = loss_and_gradient(values_BR, old_BR, returns_BR, mask_BR, clip=None, count=15)
    torch.testing.assert_close(wide, without)


def test_sequence_average_weighs_answers_alike() -> None:
    # Squared errors 4 | 1, 1, 1: row means 4 and 1; half their mean is 1.25.
    values_BR = torch.tensor([[2.0, 9.0, 9.0], [1.0, 1.0, 1.0]])
    mask_BR = torch.tensor([[True, False, False], [True, True, True]])
    loss, _ = clipped_value_loss(
        values_BR, values_BR, torch.zeros(2, 3), mask_BR, clip=None, average="sequence", count=2
    )
    assert loss.item() == 1.25


def test_gradient_pulls_values_to_returns_and_stops_where_the_clip_rules() -> None:
    _, gradient_BR = loss_and_gradient(VALUES_BR, OLD_BR, RETURNS_BR, MASK_BR, clip=0.2, count=3)
    # (V - R) ÷ 3 for the second and third token.
    expected_BR = torch.tensor([[0.0, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient_BR, expected_BR)


@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_masked_junk_changes_neither_loss_nor_gradient(junk: float, clip: float | None) -> None:
    values_BR, old_BR, returns_BR, mask_BR = random_case(1)
    clean = loss_and_gradient(values_BR, old_BR, returns_BR, mask_BR, clip=clip, count=15)
    junk_values_BR, junk_old_BR, junk_returns_BR = (
        torch.where(mask_BR, x_BR, junk) for x_BR in (values_BR, old_BR, returns_BR)
    )
    poisoned = loss_and_gradient(junk_values_BR, junk_old_BR, junk_returns_BR, mask_BR, clip=clip, count=15)
    assert torch.equal(poisoned[0], clean[0])
    assert torch.equal(poisoned[1], clean[1])


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_add_up_and_padding_and_order_do_not_matter(seed: int, average: Average) -> None:
    case = random_case(seed)
    count = 15 if average == "token" else 5
    loss, gradient_BR = loss_and_gradient(*case, clip=0.2, average=average, count=count)
    total = torch.zeros((), dtype=torch.float64)
    for rows, width in (([4, 1], 2), ([5, 0, 3], 5), ([2], 3)):
        part = [x_BR[rows, :width] for x_BR in case]
        part_loss, part_gradient_BR = loss_and_gradient(*part, clip=0.2, average=average, count=count)
        total += part_loss
        torch.testing.assert_close(part_gradient_BR, gradient_BR[rows, :width], rtol=1e-12, atol=0)
    torch.testing.assert_close(total, loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("clip", [0.2, None])
def test_gradient_is_that_of_finite_differences(clip: float | None) -> None:
    values_BR, old_BR, returns_BR, mask_BR = random_case(5)

    def loss_of(values_BR: Tensor) -> Tensor:
        return clipped_value_loss(values_BR, old_BR, returns_BR, mask_BR, clip=clip, count=15)[0]

    assert torch.autograd.gradcheck(loss_of, (values_BR.requires_grad_(),))
