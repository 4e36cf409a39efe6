import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.algorithms.masked import Average
from hydralign.algorithms.policy_losses import clipped_policy_loss

# Ratios 1.5, 0.5 in row 0 and 1.5, 0.9 in row 1; the third column is padding.
RATIOS_BR = torch.tensor([[1.5, 0.5, 1.0], [1.5, 0.9, 1.0]], dtype=torch.float64)
OLD_BR = torch.tensor([[-2.0, -1.0, -1.0], [-3.0, -0.5, -1.0]], dtype=torch.float64)
POLICY_BR = OLD_BR + RATIOS_BR.log()
ADVANTAGES_BR = torch.tensor([[2.0, -1.0, 7.0], [-1.0, 1.0, 7.0]], dtype=torch.float64)
MASK_BR = torch.tensor([[True, True, False], [True, True, False]])


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old_BR = -3 * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    policy_BR = old_BR + 0.4 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    advantages_BR = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return policy_BR, old_BR, advantages_BR, torch.arange(5) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]


def loss_and_gradient(
    policy_BR: Tensor, old_BR: Tensor, advantages_BR: Tensor, mask_BR: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    policy_BR = policy_BR.clone().requires_grad_()
    loss, _ = clipped_policy_loss(policy_BR, old_BR, advantages_BR, mask_BR, clip=0.2, **settings)
    return loss.detach(), torch.autograd.grad(loss, policy_BR)[0]


def test_loss_of_four_hand_worked_tokens() -> None:
    # Gains: min(3, 2.4) = 2.4; min(-0.5, -0.8) = -0.8; min(-1.5, -1.2) = -1.5; min(0.9, 0.9) = 0.9: sum 1.0.
    policy_BR = POLICY_BR.clone().requires_grad_()
    loss, stats = clipped_policy_loss(policy_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, clip=0.2, count=4)
    assert loss.item() == pytest.approx(-0.25, abs=1e-12)
    # The clip removes the gradient of the first two only; of the third it would have made the loss smaller.
    assert stats["clipped"].item() == 2
    assert stats["ratio"].item() == pytest.approx(4.4, abs=1e-12)
    assert stats["k1"].item() == pytest.approx(-0.012422520, abs=1e-9)
    assert stats["k3"].item() == pytest.approx(0.387577480, abs=1e-9)
    assert not any(total.requires_grad for total in stats.values())


def test_sequence_average_weighs_answers_alike() -> None:
    # Row 0 keeps one token: mean gain 2.4; row 1 keeps two: (-1.5 + 0.9) ÷ 2 = -0.3. Mean of rows 1.05.
    mask_BR = torch.tensor([[True, False, False], [True, True, False]])
    loss, _ = clipped_policy_loss(POLICY_BR, OLD_BR, ADVANTAGES_BR, mask_BR, clip=0.2, average="sequence", count=2)
    assert loss.item() == pytest.approx(-1.05, abs=1e-12)


def test_loss_is_minus_the_mean_advantage_when_the_policy_has_not_moved() -> None:
    loss, stats = clipped_policy_loss(OLD_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, clip=0.2, count=4)
    assert loss.item() == -0.25  # advantages 2, -1, -1, 1
    assert {name: total.item() for name, total in stats.items()} == {"clipped": 0, "ratio": 4, "k1": 0, "k3": 0}


def test_gradient_raises_good_tokens_and_lowers_bad_ones() -> None:
    _, gradient_BR = loss_and_gradient(OLD_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, count=4)
    # At ratio 1 the gradient is -A ÷ count; padding has none.
    assert gradient_BR.tolist() == [[-0.5, 0.25, 0.0], [0.25, -0.25, 0.0]]


def test_gradient_is_zero_exactly_where_the_clip_binds() -> None:
    _, gradient_BR = loss_and_gradient(POLICY_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, count=4)
    # -ratio · A ÷ 4 for the two tokens that are not clipped.
    expected_BR = torch.tensor([[0.0, 0.0, 0.0], [0.375, -0.225, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient_BR, expected_BR)


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_masked_junk_changes_neither_loss_nor_gradient_nor_stats(junk: float, average: Average) -> None:
    policy_BR, old_BR, advantages_BR, mask_BR = random_case(1)
    clean = loss_and_gradient(policy_BR, old_BR, advantages_BR, mask_BR, average=average, count=15)
    junk_policy_BR, junk_old_BR, junk_advantages_BR = (
        torch.where(mask_BR, x_BR, junk) for x_BR in (policy_BR, old_BR, advantages_BR)
    )
    poisoned = loss_and_gradient(junk_policy_BR, junk_old_BR, junk_advantages_BR, mask_BR, average=average, count=15)
    assert torch.equal(poisoned[0], clean[0])
    assert torch.equal(poisoned[1], clean[1])
    _, clean_stats = clipped_policy_loss(policy_BR, old_BR, advantages_BR, mask_BR, clip=0.2, count=15)
    _, junk_stats = clipped_policy_loss(junk_policy_BR, junk_old_BR, junk_advantages_BR, mask_BR, clip=0.2, count=15)
    assert {name: total.item() for name, total in junk_stats.items()} == {
        name: total.item() for name, total in clean_stats.items()
    }


def test_nan_at_a_token_that_counts_is_not_hidden() -> None:
    policy_BR = POLICY_BR.clone()
    policy_BR[0, 1] = float("nan")
    loss, _ = clipped_policy_loss(policy_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, clip=0.2, count=4)
    assert math.isnan(loss.item())


def test_infinite_logprob_at_a_token_that_counts_shows_in_k1() -> None:
    policy_BR = POLICY_BR.clone()
    policy_BR[0, 1] = float("-inf")
    _, stats = clipped_policy_loss(policy_BR, OLD_BR, ADVANTAGES_BR, MASK_BR, clip=0.2, count=4)
    assert stats["k1"].item() == float("inf")


def test_an_absurd_ratio_leaves_loss_and_gradient_finite_in_fp32() -> None:
    policy_BR, old_BR = torch.tensor([[-0.1, -1.0]]), torch.tensor([[-200.0, -1.0]])
    advantages_BR, mask_BR = torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss, gradient_BR = loss_and_gradient(policy_BR, old_BR, advantages_BR, mask_BR, count=2)
    assert loss.item() == pytest.approx(math.exp(20) / 2, rel=1e-5)
    assert gradient_BR.tolist() == [[0.0, -0.5]]


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_add_up_and_padding_and_order_do_not_matter(seed: int, average: Average) -> None:
    policy_BR, old_BR, advantages_BR, mask_BR = random_case(seed)
    count = 15 if average == "token" else 5
    loss, gradient_BR = loss_and_gradient(policy_BR, old_BR, advantages_BR, mask_BR, average=average, count=count)
    total = torch.zeros((), dtype=torch.float64)
    # Rows in another order, cut into micro-batches of uneven size and trimmed to different widths.
    for rows, width in (([4, 1], 2), ([5, 0, 3], 5), ([2], 3)):
        part_loss, part_gradient_BR = loss_and_gradient(
            policy_BR[rows, :width],
            old_BR[rows, :width],
            advantages_BR[rows, :width],
            mask_BR[rows, :width],
            average=average,
            count=count,
        )
        total += part_loss
        torch.testing.assert_close(part_gradient_BR, gradient_BR[rows, :width], rtol=1e-12, atol=0)
    torch.testing.assert_close(total, loss, rtol=1e-12, atol=0)


def test_stats_of_micro_batches_add_up() -> None:
    policy_BR, old_BR, advantages_BR, mask_BR = random_case(2)
    whole = clipped_policy_loss(policy_BR, old_BR, advantages_BR, mask_BR, clip=0.2, count=15)[1]
    parts = [
        clipped_policy_loss(policy_BR[r], old_BR[r], advantages_BR[r], mask_BR[r], clip=0.2, count=15)[1]
        for r in (slice(0, 2), slice(2, 6))
    ]
    for name, total in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_gradient_is_that_of_finite_differences(average: Average) -> None:
    policy_BR, old_BR, advantages_BR, mask_BR = random_case(4)

    def loss_of(policy_BR: Tensor, advantages_BR: Tensor) -> Tensor:
        return clipped_policy_loss(
            policy_BR,
            old_BR,
            advantages_BR,
            mask_BR,
            clip=0.2,
            average=average,
            count=15,
        )[0]

    assert torch.autograd.gradcheck(loss_of, (policy_BR.requires_grad_(), advantages_BR.requires_grad_()))


@pytest.mark.parametrize("seed", range(5))
def test_clipping_never_lowers_the_loss(seed: int) -> None:
    policy_BR, old_BR, advantages_BR, mask_BR = random_case(seed)
    losses = [
        clipped_policy_loss(policy_BR, old_BR, advantages_BR, mask_BR, clip=clip, count=15)[0].item()
        for clip in (0.1, 0.3, 1e6)
    ]
    assert losses[0] >= losses[1] >= losses[2]
    assert losses[0] > losses[2]
