import math

import pytest
import torch
from torch import Tensor

from hydralign.algorithms.preference_losses import pairwise_logistic_loss

CHOSEN_B = torch.tensor([1.0, 0.5, -1.0, 3.0], dtype=torch.float64)
REJECTED_B = torch.tensor([0.0, 0.5, 1.0, 0.0], dtype=torch.float64)


def test_loss_and_stats_of_four_hand_worked_pairs() -> None:
    # Margins 1, 0, -2, 3: ln(1 + e⁻ᵐ) = 0.313262, 0.693147, 2.126928, 0.048587; their mean is 0.795481.
    loss, stats = pairwise_logistic_loss(CHOSEN_B, REJECTED_B)
    assert loss.item() == pytest.approx(0.795481, abs=1e-6)
    assert {name: total.item() for name, total in stats.items()} == {"wins": 2.5, "ties": 1.0, "margin": 2.0}


def test_loss_is_log_two_and_accuracy_one_half_when_all_scores_are_equal() -> None:
    loss, stats = pairwise_logistic_loss(torch.full((6,), 0.7), torch.full((6,), 0.7))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    assert stats["wins"].item() / 6 == 0.5
    assert stats["ties"].item() == 6


def test_gradient_raises_the_chosen_and_lowers_the_rejected() -> None:
    chosen_B, rejected_B = CHOSEN_B.clone().requires_grad_(), REJECTED_B.clone().requires_grad_()
    loss, stats = pairwise_logistic_loss(chosen_B, rejected_B)
    chosen_gradient_B, rejected_gradient_B = torch.autograd.grad(loss, (chosen_B, rejected_B))
    # -σ(-margin) ÷ 4.
    assert chosen_gradient_B.tolist() == pytest.approx([-0.0672354, -0.125, -0.2201993, -0.0118565], abs=1e-7)
    assert torch.equal(rejected_gradient_B, -chosen_gradient_B)
    assert not any(total.requires_grad for total in stats.values())


def test_a_constant_added_to_all_scores_and_the_order_of_pairs_do_not_matter() -> None:
    loss, _ = pairwise_logistic_loss(CHOSEN_B, REJECTED_B)
    moved, _ = pairwise_logistic_loss(CHOSEN_B.flip(0) + 8, REJECTED_B.flip(0) + 8)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-12)


def test_micro_batches_add_up_when_given_the_count_of_the_step() -> None:
    whole, whole_stats = pairwise_logistic_loss(CHOSEN_B, REJECTED_B)
    first, first_stats = pairwise_logistic_loss(CHOSEN_B[:1], REJECTED_B[:1], count=4)
    rest, rest_stats = pairwise_logistic_loss(CHOSEN_B[1:], REJECTED_B[1:], count=4)
    assert (first + rest).item() == pytest.approx(whole.item(), rel=1e-12)
    for name in whole_stats:
        assert (first_stats[name] + rest_stats[name]).item() == whole_stats[name].item()


def test_extreme_margins_stay_finite() -> None:
    loss, _ = pairwise_logistic_loss(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]))
    assert loss.item() == pytest.approx(500.0)


def test_no_pairs_cost_nothing() -> None:
    loss, stats = pairwise_logistic_loss(torch.zeros(0), torch.zeros(0))
    assert loss.item() == 0.0
    assert stats["wins"].item() == 0.0


def test_gradient_is_that_of_finite_differences() -> None:
    def loss_of(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
        return pairwise_logistic_loss(chosen_B, rejected_B)[0]

    assert torch.autograd.gradcheck(loss_of, (CHOSEN_B.clone().requires_grad_(), REJECTED_B.clone().requires_grad_()))
