import pytest
import torch
from torch import Tensor

from hydralign.algorithms.advantages import gae, group_normalised, leave_one_out

REWARDS_BR = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
VALUES_BR = torch.tensor([[0.5, 0.6, 0.8]], dtype=torch.float64)
ALL_BR = torch.ones(1, 3, dtype=torch.bool)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards_BR = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    values_BR = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    return rewards_BR, values_BR, torch.arange(7) < torch.randint(0, 8, (6, 1), generator=generator)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # δ = 0.1, 0.2, 0.2; A₁ = 0.2 + 0.95·0.2; A₀ = 0.1 + 0.95·0.39.
        (1.0, 0.95, [0.4705, 0.39, 0.2]),
        # δ = 0.04, 0.12, 0.2; A₁ = 0.12 + 0.45·0.2; A₀ = 0.04 + 0.45·0.21.
        (0.9, 0.5, [0.1345, 0.21, 0.2]),
    ],
)
def test_gae_of_a_hand_worked_answer(gamma: float, lam: float, expected: list[float]) -> None:
    advantages_BR, returns_BR = gae(REWARDS_BR, VALUES_BR, ALL_BR, gamma=gamma, lam=lam)
    assert advantages_BR.tolist()[0] == pytest.approx(expected, abs=1e-12)
    values = [0.5, 0.6, 0.8]
    assert returns_BR.tolist()[0] == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_monte_carlo_return_minus_value_when_lambda_and_gamma_are_one(seed: int) -> None:
    rewards_BR, values_BR, mask_BR = random_case(seed)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma=1.0, lam=1.0)
    for row, length in enumerate(mask_BR.sum(1).tolist()):
        for t in range(length):
            to_go = sum(rewards_BR[row, t:length].tolist())
            assert returns_BR[row, t].item() == pytest.approx(to_go, abs=1e-12)
            assert advantages_BR[row, t].item() == pytest.approx(to_go - values_BR[row, t].item(), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_one_step_error_when_lambda_is_zero(seed: int) -> None:
    rewards_BR, values_BR, mask_BR = random_case(seed)
    advantages_BR, _ = gae(rewards_BR, values_BR, mask_BR, gamma=0.9, lam=0.0)
    for row, length in enumerate(mask_BR.sum(1).tolist()):
        for t in range(length):
            following = values_BR[row, t + 1].item() if t + 1 < length else 0.0
            error = rewards_BR[row, t].item() + 0.9 * following - values_BR[row, t].item()
            assert advantages_BR[row, t].item() == pytest.approx(error, abs=1e-12)


def test_nothing_is_bootstrapped_after_a_truncated_answer() -> None:
    # The answer fills the whole width, unfinished: its last error is r - V all the same.
    advantages_BR, returns_BR = gae(REWARDS_BR, VALUES_BR, ALL_BR, gamma=1.0, lam=0.95)
    assert advantages_BR[0, 2].item() == pytest.approx(0.2, abs=1e-12)
    assert returns_BR[0, 2].item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_padding_columns_and_the_junk_in_them_change_nothing(junk: float) -> None:
    pad_BR = torch.full((1, 4), junk, dtype=torch.float64)
    mask_BR = torch.tensor([[True] * 3 + [False] * 4])
    narrow = gae(REWARDS_BR, VALUES_BR, ALL_BR, gamma=0.9, lam=0.5)
    wide = gae(torch.cat([REWARDS_BR, pad_BR], 1), torch.cat([VALUES_BR, pad_BR], 1), mask_BR, gamma=0.9, lam=0.5)
    for narrow_BR, wide_BR in zip(narrow, wide, strict=True):
        assert torch.equal(wide_BR[:, :3], narrow_BR)
        assert wide_BR[:, 3:].tolist() == [[0.0] * 4]


def test_a_masked_column_inside_an_answer_is_stepped_over() -> None:
    rewards_BR = torch.tensor([[0.0, 0.0, 7.0, 1.0]], dtype=torch.float64)
    values_BR = torch.tensor([[0.5, 0.6, 7.0, 0.8]], dtype=torch.float64)
    mask_BR = torch.tensor([[True, True, False, True]])
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma=0.9, lam=0.5)
    assert advantages_BR.tolist()[0] == pytest.approx([0.1345, 0.21, 0.0, 0.2], abs=1e-12)
    assert returns_BR.tolist()[0] == pytest.approx([0.6345, 0.81, 0.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rows_do_not_see_each_other(seed: int) -> None:
    rewards_BR, values_BR, mask_BR = random_case(seed)
    order_B = torch.tensor([4, 1, 5, 0, 3, 2])
    together = gae(rewards_BR, values_BR, mask_BR, gamma=0.9, lam=0.95)
    shuffled = gae(rewards_BR[order_B], values_BR[order_B], mask_BR[order_B], gamma=0.9, lam=0.95)
    for together_BR, shuffled_BR in zip(together, shuffled, strict=True):
        assert torch.equal(together_BR[order_B], shuffled_BR)


def test_advantages_are_zero_when_the_critic_is_exact() -> None:
    values_BR = torch.tensor([[0.81, 0.9, 1.0]], dtype=torch.float64)
    advantages_BR, returns_BR = gae(REWARDS_BR, values_BR, ALL_BR, gamma=0.9, lam=0.95)
    assert advantages_BR.abs().max().item() < 1e-12
    torch.testing.assert_close(returns_BR, values_BR)


def test_half_precision_input_is_computed_in_fp32() -> None:
    advantages_BR, returns_BR = gae(REWARDS_BR.bfloat16(), VALUES_BR.bfloat16(), ALL_BR, gamma=1.0, lam=0.95)
    assert advantages_BR.dtype == returns_BR.dtype == torch.float32


def test_no_tokens_at_all_give_empty_results() -> None:
    advantages_BR, returns_BR = gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool),
                                    gamma=1.0, lam=1.0)  # fmt: skip
    assert advantages_BR.shape == returns_BR.shape == (2, 0)


def test_gradients_with_respect_to_rewards_and_values_are_those_of_finite_differences() -> None:
    rewards_BR, values_BR, mask_BR = random_case(0)
    inputs = (rewards_BR.requires_grad_(), values_BR.requires_grad_())
    assert torch.autograd.gradcheck(lambda r, v: gae(r, v, mask_BR, gamma=0.9, lam=0.8), inputs)


def test_leave_one_out_by_hand() -> None:
    # The others' means are (2 + 6) / 2, (1 + 6) / 2 and (1 + 2) / 2.
    found_PG = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], dtype=torch.float64))
    assert found_PG.tolist() == [pytest.approx([-3.0, -1.5, 4.5]), [0.0, 0.0, 0.0]]


def test_leave_one_out_is_blind_to_what_all_answers_to_a_prompt_share() -> None:
    returns_PG = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted_PG = returns_PG + torch.arange(5.0)[:, None]
    torch.testing.assert_close(leave_one_out(shifted_PG), leave_one_out(returns_PG))
    torch.testing.assert_close(leave_one_out(returns_PG).sum(1), torch.zeros(5, dtype=torch.float64))


def test_group_normalised_by_hand() -> None:
    # Mean 3, deviations -2, -1, 3, of a sample √((4 + 1 + 9) / 2) = √7.
    found_PG = group_normalised(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], dtype=torch.float64), eps=0.0)
    assert found_PG[0].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    assert group_normalised(torch.tensor([[4.0, 4.0]])).tolist() == [[0.0, 0.0]]


def test_group_normalised_is_blind_to_the_scale_of_rewards() -> None:
    returns_PG = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(group_normalised(9 * returns_PG, eps=0.0), group_normalised(returns_PG, eps=0.0))
