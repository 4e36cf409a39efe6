import pytest
import torch
from torch import Tensor

from hydralign.algorithms.masked import (
    Average,
    aggregate,
    masked_mean,
    masked_moments,
    masked_sum,
    mean_and_variance,
    whiten,
    zero_masked,
)
from hydralign.errors import ConfigError

X_BR = torch.tensor([[1.0, 2.0, 3.0, 9.0], [5.0, 9.0, 9.0, 9.0]])
MASK_BR = torch.tensor([[True, True, True, False], [True, False, False, False]])
NOTHING_BR = torch.zeros(2, 4, dtype=torch.bool)


def with_junk(x_BR: Tensor, mask_BR: Tensor, junk: float) -> Tensor:
    return torch.where(mask_BR, x_BR, junk)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_masked_junk_changes_no_sum_mean_or_moment_and_gets_no_gradient(junk: float) -> None:
    x_BR = with_junk(X_BR, MASK_BR, junk).requires_grad_()
    assert zero_masked(x_BR, MASK_BR).tolist() == [[1.0, 2.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0]]
    assert masked_sum(x_BR, MASK_BR).item() == 11.0
    assert masked_mean(x_BR, MASK_BR).item() == 2.75
    assert masked_moments(x_BR, MASK_BR).tolist() == [4.0, 11.0, 39.0]
    (token_BR,) = torch.autograd.grad(aggregate(x_BR, MASK_BR, average="token", count=4), x_BR)
    assert token_BR.tolist() == [[0.25, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.0]]
    (sequence_BR,) = torch.autograd.grad(aggregate(x_BR, MASK_BR, average="sequence", count=2), x_BR)
    torch.testing.assert_close(sequence_BR, torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0.0], [0.5, 0.0, 0.0, 0.0]]))


def test_masked_mean_divides_by_the_count_given() -> None:
    assert masked_mean(X_BR, MASK_BR, count=8).item() == 1.375
    assert masked_mean(X_BR, MASK_BR, count=torch.tensor(8)).item() == 1.375


def test_mean_of_nothing_is_zero() -> None:
    assert masked_mean(X_BR, NOTHING_BR).item() == 0.0
    assert aggregate(X_BR, NOTHING_BR, average="token", count=0).item() == 0.0
    assert aggregate(X_BR, NOTHING_BR, average="sequence", count=torch.tensor(0)).item() == 0.0
    mean, variance = mean_and_variance(masked_moments(X_BR, NOTHING_BR))
    assert (mean.item(), variance.item()) == (0.0, 0.0)


def test_aggregate_weighs_tokens_or_answers_alike() -> None:
    # TokenBatch (1, 2, 3) and (5): 11 over 4 tokens, or row means 2 and 5 over 2 rows.
    assert aggregate(X_BR, MASK_BR, average="token", count=4).item() == 2.75
    assert aggregate(X_BR, MASK_BR, average="sequence", count=2).item() == 3.5


def test_aggregate_gives_an_empty_row_no_weight() -> None:
    x_BR = torch.tensor([[4.0, 6.0], [float("nan"), 7.0]])
    mask_BR = torch.tensor([[True, True], [False, False]])
    assert aggregate(x_BR, mask_BR, average="sequence", count=1).item() == 5.0


def test_aggregate_refuses_an_unknown_average() -> None:
    with pytest.raises(ConfigError, match="average='tokens'"):
        aggregate(X_BR, MASK_BR, average="tokens", count=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_micro_batches_add_up_to_the_whole_batch(average: Average) -> None:
    generator = torch.Generator().manual_seed(3)
    x_BR = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask_BR = torch.arange(5) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]
    count = 15 if average == "token" else 6
    whole = aggregate(x_BR, mask_BR, average=average, count=count)
    parts = [
        aggregate(x_BR[rows], mask_BR[rows], average=average, count=count)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


def test_moments_of_parts_add_up_and_give_the_biased_variance() -> None:
    moments = masked_moments(X_BR[:1], MASK_BR[:1]) + masked_moments(X_BR[1:], MASK_BR[1:])
    assert moments.dtype == torch.float64
    mean, variance = mean_and_variance(moments)
    assert mean.item() == 2.75
    assert variance.item() == 2.1875  # 39/4 - 2.75²


def test_variance_survives_a_mean_that_dwarfs_it() -> None:
    x_BR = torch.tensor([[100_001.0, 100_002.0, 100_003.0, 100_004.0]])
    _, variance = mean_and_variance(masked_moments(x_BR, torch.ones_like(x_BR, dtype=torch.bool)))
    assert variance.item() == pytest.approx(1.25, rel=1e-5)


def test_whiten_reproduces_the_published_example() -> None:
    # Huang et al. 2023, "The N implementation details of RLHF with PPO": biased variance, mean kept.
    x_BR = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    mask_BR = torch.ones_like(x_BR, dtype=torch.bool)
    mean, variance = mean_and_variance(masked_moments(x_BR, mask_BR))
    white_BR = whiten(x_BR, mask_BR, mean=mean, variance=variance, subtract_mean=False)
    expected_BR = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6000, 1.9873], [2.3746, 2.7619, 3.1492]])
    torch.testing.assert_close(white_BR, expected_BR, rtol=0, atol=6e-5)
    centred_BR = whiten(x_BR, mask_BR, mean=mean, variance=variance)
    torch.testing.assert_close(centred_BR, expected_BR - 1.6, rtol=0, atol=6e-5)


@pytest.mark.parametrize("seed", range(5))
def test_whitened_entries_have_mean_zero_and_variance_one_whatever_is_masked(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_BR = 7 + 3 * torch.randn(8, 6, generator=generator)
    mask_BR = torch.rand(8, 6, generator=generator) < 0.6
    junk_BR = with_junk(x_BR, mask_BR, float("nan"))
    mean, variance = mean_and_variance(masked_moments(junk_BR, mask_BR))
    white_BR = whiten(junk_BR, mask_BR, mean=mean, variance=variance)
    assert white_BR.dtype == torch.float32
    assert white_BR[mask_BR].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white_BR[mask_BR].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-5)
    assert (white_BR[~mask_BR] == 0).all()
    kept_mean_BR = whiten(junk_BR, mask_BR, mean=mean, variance=variance, subtract_mean=False)
    assert kept_mean_BR[mask_BR].mean().item() == pytest.approx(mean.item(), rel=1e-5)
    assert (kept_mean_BR[~mask_BR] == 0).all()


def test_whiten_of_equal_entries_is_zero() -> None:
    x_BR = torch.full((2, 3), 4.0)
    mask_BR = torch.ones(2, 3, dtype=torch.bool)
    mean, variance = mean_and_variance(masked_moments(x_BR, mask_BR))
    assert (whiten(x_BR, mask_BR, mean=mean, variance=variance) == 0).all()
