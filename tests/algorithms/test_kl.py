import math

import pytest
import torch

from hydralign.algorithms.kl import adapt_coefficient, k1, k3
from hydralign.errors import NonFiniteError


def test_estimates_of_hand_worked_tokens() -> None:
    # π = ½, ρ = ¼: k1 = ln 2, k3 = ½ - 1 + ln 2. π = ¼, ρ = ½: k1 = -ln 2, k3 = 2 - 1 - ln 2.
    policy_BR = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    ref_BR = torch.tensor([[0.25, 0.5]], dtype=torch.float64).log()
    assert k1(policy_BR, ref_BR).tolist()[0] == pytest.approx([0.693147181, -0.693147181], abs=1e-9)
    assert k3(policy_BR, ref_BR).tolist()[0] == pytest.approx([0.193147181, 0.306852819], abs=1e-9)


def test_expectation_under_the_policy_is_the_exact_kl() -> None:
    policy_V, ref_V = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    exact = 0.1438410362  # ½·ln 2 + ½·ln ⅔
    for estimate in (k1, k3):
        mean = (policy_V * estimate(policy_V.log(), ref_V.log())).sum().item()
        assert mean == pytest.approx(exact, abs=1e-9)
    swapped = (policy_V * k3(ref_V.log(), policy_V.log())).sum().item()
    assert abs(swapped - exact) > 0.02


@pytest.mark.parametrize("seed", range(5))
def test_both_estimates_agree_in_expectation_and_k3_is_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy_V, ref_V = torch.randn(2, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert (k3(policy_V, ref_V) >= 0).all()
    assert k1(policy_V, ref_V).min() < 0
    means = [(policy_V.exp() * estimate(policy_V, ref_V)).sum().item() for estimate in (k1, k3)]
    assert means[0] == pytest.approx(means[1], rel=1e-10)


def test_estimates_are_exactly_zero_when_policy_is_reference() -> None:
    logprobs_BR = torch.tensor([[-0.1, -7.3, -40.0]])
    assert k1(logprobs_BR, logprobs_BR).tolist() == [[0.0, 0.0, 0.0]]
    assert k3(logprobs_BR, logprobs_BR).tolist() == [[0.0, 0.0, 0.0]]


def test_k3_keeps_its_digits_for_a_barely_moved_policy_in_fp32() -> None:
    policy_BR, ref_BR = torch.tensor([[1e-4]]), torch.tensor([[0.0]])
    assert k3(policy_BR, ref_BR).item() == pytest.approx(0.5e-8, rel=2e-3)


def test_k3_stays_finite_for_a_token_that_the_policy_finds_impossible() -> None:
    estimate = k3(torch.tensor([[-200.0]]), torch.tensor([[-1.0]])).item()
    assert math.isfinite(estimate)
    assert estimate > 1e8


@pytest.mark.parametrize("junk", [float("nan"), float("-inf"), 1e30])
def test_masked_junk_changes_neither_estimate_nor_gradient(junk: float) -> None:
    mask_BR = torch.tensor([[True, False]])
    policy_BR = torch.tensor([[-1.0, junk]], requires_grad=True)
    ref_BR = torch.tensor([[-2.0, junk]])
    for estimate, expected in ((k1, 1.0), (k3, 0.367879)):
        result_BR = estimate(policy_BR, ref_BR, mask_BR)
        assert result_BR.tolist()[0] == pytest.approx([expected, 0.0], abs=1e-6)
        (gradient_BR,) = torch.autograd.grad(result_BR.sum(), policy_BR)
        assert gradient_BR[0, 0].item() != 0.0
        assert gradient_BR[0, 1].item() == 0.0


def test_gradients_of_the_estimates_are_those_of_finite_differences() -> None:
    policy_BR = torch.tensor([[-1.0, -0.3, -2.0]], dtype=torch.float64, requires_grad=True)
    ref_BR = torch.tensor([[-1.5, -0.2, -1.0]], dtype=torch.float64)
    for estimate in (k1, k3):
        assert torch.autograd.gradcheck(lambda p, f=estimate: f(p, ref_BR), (policy_BR,))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(12.0, 0.201024), (6.6, 0.200512), (6.0, 0.2), (5.4, 0.199488), (0.0, 0.198976), (-3.0, 0.198976)],
)
def test_adapt_coefficient_follows_the_target_and_is_clipped_at_a_fifth(kl: float, expected: float) -> None:
    # 256 ÷ 10 000 = 0.0256: at the clip the coefficient moves by ±0.2 · 0.0256 = ±0.512 %.
    assert adapt_coefficient(0.2, kl=kl, target=6.0, horizon=10_000, rows=256) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_adapt_coefficient_refuses_a_kl_that_is_not_finite(kl: float) -> None:
    with pytest.raises(NonFiniteError, match=str(kl)):
        adapt_coefficient(0.2, kl=kl, target=6.0, horizon=10_000, rows=256)
