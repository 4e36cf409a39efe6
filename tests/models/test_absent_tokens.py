"""Ids that a model has logits for and its tokenizer no token: never drawn, and of probability 0 in every pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hydralign.config.model import Form
from hydralign.generation import sample
from hydralign.methods.start_checks import check_start
from hydralign.models import make_policy
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.forms.build import make_frozen_policy
from hydralign.models.heads.token import absent_ids
from hydralign.models.policy import Policy
from hydralign.rollout import collect
from hydralign.testing import tiny_model, tiny_prompts, tiny_tokenizer
from hydralign.types import SamplingParams
from tests.conftest import FORMS

HOLE = 305


@pytest.fixture(scope="module")
def holed() -> Any:
    """300 trained tokens, then a hole of six ids, one added token, and nothing behind it."""
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == 300
    tokenizer.add_tokens([f"<extra{n}>" for n in range(7)])
    vocabulary = {word: number for word, number in tokenizer.get_vocab().items() if not 300 <= number <= HOLE}
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


def padded_model(tokenizer: Any, **settings: Any) -> Any:
    """A model with twenty more rows than the tokenizer has tokens, and a liking for them."""
    model = tiny_model(tokenizer, **settings)
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(20, 32, generator=generator)
        model.get_output_embeddings().weight[300:] = rows
    return model


def test_absent_ids_are_those_without_a_token(holed: Any) -> None:
    assert absent_ids(holed, 320) == (*range(300, 306), *range(307, 320))
    assert absent_ids(holed, 300) == ()


@pytest.mark.parametrize("form", ["full", "lora", "hydra", "hydra-values"])
def test_absent_tokens_are_never_drawn_and_have_no_share_in_any_pass(holed: Any, form: str) -> None:
    made: Form = FORMS[form]
    policy = make_policy(padded_model(holed, family="llama"), holed, form=made)
    check_rollout(policy, holed)


def test_a_comparison_never_draws_absent_tokens(holed: Any) -> None:
    check_rollout(make_frozen_policy(padded_model(holed, family="llama"), holed), holed)


def check_rollout(policy: Policy, tokenizer: Any) -> None:
    plan = SamplingParams(max_new_tokens=12, seed=3, temperature=1.3, min_new_tokens=2)
    experience = collect(policy, tiny_prompts(tokenizer) * 6, lambda completions: [0.0] * len(completions), plan)
    rows = experience.rollout.rows
    drawn = rows.response_BR[rows.mask_BR].tolist()
    assert len(drawn) > 100
    assert not set(drawn) & set(absent_ids(tokenizer, 320))
    measured = check_start(policy, experience, fresh=True)
    assert measured["sampler/logprob_drift_max"] < 1e-4
    evaluation = policy.evaluate(rows)
    assert evaluation.entropy_BR.isfinite().all()
    torch.testing.assert_close(evaluation.logprobs_BR.detach(), experience.old_logprobs_BR, atol=1e-4, rtol=0)
    if policy.trained():
        evaluation.logprobs_BR.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in policy.trained().values())


def test_log_probabilities_are_those_of_the_tokens_that_there_are(holed: Any) -> None:
    model = padded_model(holed)
    policy = make_policy(model, holed)
    rollout = sample(policy, tiny_prompts(holed, "this and"), SamplingParams(max_new_tokens=1, seed=1))
    ids = lay_out(rollout.rows)[:, :-1]
    with torch.no_grad():
        logits_V = model(input_ids=ids).logits[0, -1]
    logits_V[list(absent_ids(holed, 320))] = -torch.inf
    want = logits_V.log_softmax(-1)[lay_out(rollout.rows)[0, -1]]
    assert rollout.old_logprobs_BR[0, 0].item() == pytest.approx(want.item(), abs=1e-5)
