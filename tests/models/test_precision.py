"""bf16 products: models load in every role, and what is computed from rounded logits is not rounded again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hydralign.config.model import LoraForm
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.branch import Branch
from hydralign.models.forms.build import make_frozen_policy, make_supervised_policy
from hydralign.models.kernels.logprobs import token_logprobs
from hydralign.testing import tiny_model
from hydralign.types import TokenBatch
from tests.conftest import FAMILIES
from tests.models.test_slicing import new_model


@pytest.mark.parametrize("family", FAMILIES)
def test_reader_and_lora_student_load_in_bf16_and_read_nearly_what_fp32_reads(
    family: str, rows: TokenBatch, tokenizer: Any
) -> None:
    exact = make_frozen_policy(tiny_model(tokenizer, family=family), tokenizer)
    rounded = make_frozen_policy(tiny_model(tokenizer, family=family), tokenizer, precision="bf16")
    form = LoraForm(rank=2)
    learner = make_supervised_policy(tiny_model(tokenizer, family=family), tokenizer, form=form, precision="bf16")
    for model in (rounded.model, learner.model):
        assert torch.bfloat16 in {p.dtype for p in model.parameters()}
    with torch.no_grad():
        wanted_BR = exact.reference_logprobs(rows)
        for policy in (rounded, learner):
            gap_BR = (policy.branch.logprobs(rows) - wanted_BR).abs()
            assert 0 < gap_BR.max() < 0.3


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_entropies_of_bf16_logits_are_those_that_fp64_gives(family: str, trained: bool) -> None:
    model = new_model(family).requires_grad_(trained)
    branch = Branch(CausalBackbone(model, precision="bf16"))
    hidden_ND = torch.randn(40, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets_N, blocked_N = torch.arange(40), torch.zeros(40, dtype=torch.bool)
    with branch.backbone.autocast():
        logits_NV = branch.head(hidden_ND).detach()
        chosen_N, entropy_N = token_logprobs(
            hidden_ND, targets_N, blocked_N, head=branch.head, temperature=0.8, stop_ids=()
        )
    exact_NV = torch.log_softmax(logits_NV.double() / 0.8, -1)
    assert torch.equal(logits_NV.bfloat16().float(), logits_NV) == (family == "mistral")
    torch.testing.assert_close(entropy_N.double(), -(exact_NV.exp() * exact_NV).sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen_N.double(), exact_NV[torch.arange(40), targets_N], atol=1e-5, rtol=0)
