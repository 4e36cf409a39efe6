import pytest
import torch

from hydralign.algorithms.rewards import token_rewards

# Row 0 ends itself: three words, end of sequence, two pads. Row 1 is truncated at full width.
MASK_BR = torch.tensor([[True, True, True, True, False, False], [True] * 6])
KL_BR = torch.tensor([[0.1, 0.2, -0.1, 0.3, 5.0, 5.0], [0.0, 0.1, 0.0, 0.1, 0.0, 0.2]])
SCORES_B = torch.tensor([2.0, -1.0])


def test_score_lands_on_the_last_real_token_and_the_kl_penalty_on_every_one() -> None:
    rewards_BR = token_rewards(SCORES_B, KL_BR, MASK_BR, coefficient=0.5)
    expected_BR = [[-0.05, -0.1, 0.05, 1.85, 0.0, 0.0], [0.0, -0.05, 0.0, -0.05, 0.0, -1.1]]
    torch.testing.assert_close(rewards_BR, torch.tensor(expected_BR))


def test_score_of_a_one_token_answer_lands_on_that_token() -> None:
    mask_BR = torch.tensor([[True, False, False]])
    rewards_BR = token_rewards(torch.tensor([3.0]), torch.zeros(1, 3), mask_BR, coefficient=0.1)
    assert rewards_BR.tolist() == [[3.0, 0.0, 0.0]]


def test_dense_scores_are_added_per_token() -> None:
    dense_BR = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0, 9.0], [0.0] * 6])
    rewards_BR = token_rewards(SCORES_B, KL_BR, MASK_BR, coefficient=0.0, token_scores_BR=dense_BR)
    assert rewards_BR.tolist() == [[1.0, 2.0, 3.0, 6.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, -1.0]]


def test_score_of_an_empty_answer_is_placed_nowhere() -> None:
    mask_BR = torch.tensor([[False, False], [True, True]])
    scores_B = torch.tensor([float("nan"), 1.0])
    rewards_BR = token_rewards(scores_B, torch.zeros(2, 2), mask_BR, coefficient=0.1)
    assert rewards_BR.tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_masked_junk_changes_no_reward(junk: float) -> None:
    junk_BR = torch.where(MASK_BR, KL_BR, junk)
    clean_BR = token_rewards(SCORES_B, KL_BR, MASK_BR, coefficient=0.5, token_scores_BR=KL_BR)
    assert torch.equal(token_rewards(SCORES_B, junk_BR, MASK_BR, coefficient=0.5, token_scores_BR=junk_BR), clean_BR)


@pytest.mark.parametrize("seed", range(5))
def test_rewards_of_a_row_sum_to_its_score_minus_the_kl_penalty(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(1, 8, (9,), generator=generator)
    mask_BR = torch.arange(7) < lengths_B[:, None]
    kl_BR = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    scores_B = torch.randn(9, generator=generator, dtype=torch.float64)
    totals_B = token_rewards(scores_B, kl_BR, mask_BR, coefficient=0.3).sum(1)
    for row, length in enumerate(lengths_B.tolist()):
        expected = scores_B[row].item() - 0.3 * sum(kl_BR[row, :length].tolist())
        assert totals_B[row].item() == pytest.approx(expected, abs=1e-12)


def test_result_has_the_dtype_of_the_kl() -> None:
    rewards_BR = token_rewards(SCORES_B.double(), KL_BR, MASK_BR, coefficient=0.5, token_scores_BR=KL_BR.double())
    assert rewards_BR.dtype == torch.float32
