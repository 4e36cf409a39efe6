"""Packing is refused where texts of one row see each other, with new weights and in bf16 too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.methods.packing_check import packing_gaps, require_apart
from hydralign.models.forms.build import make_supervised_policy
from hydralign.models.policy import Policy
from hydralign.testing import tiny_model
from tests.models.test_slicing import SIZES

SHARED: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1}
LEAKING: dict[str, dict[str, Any]] = {
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64},
    "biogpt": {},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    "mamba": {},
}
APART: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 4},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4},
}


def student(family: str, tokenizer: Any, sizes: dict[str, Any], **settings: Any) -> Policy:
    """A model as transformers initialises it, whose parts hardly add to the states that they read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHARED, **sizes}))
    return make_supervised_policy(model, tokenizer, **settings)


@pytest.mark.parametrize("family", LEAKING)
def test_new_model_whose_texts_mix_is_refused(family: str, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="packing: false"):
        require_apart(student(family, tokenizer, LEAKING[family]))


@pytest.mark.parametrize("family", APART)
def test_model_that_keeps_texts_apart_changes_nothing_in_the_others(family: str, tokenizer: Any) -> None:
    learner = student(family, tokenizer, APART[family])
    require_apart(learner)
    with torch.no_grad():
        leak, gap, scale = packing_gaps(learner)
    assert max(leak, gap) < 1e-5 < scale


def test_leak_of_one_token_does_not_hide_in_bf16(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    form = LoraForm(rank=2, targets=("q_proj",))
    learner = make_supervised_policy(tiny_model(tokenizer, family="llama"), tokenizer, form=form, precision="bf16")
    stored = {name: p.dtype for name, p in learner.model.named_parameters()}
    require_apart(learner)
    assert {name: p.dtype for name, p in learner.model.named_parameters()} == stored
    body = learner.branch.backbone.body

    def leaking(*, inputs_embeds: torch.Tensor, **inputs: Any) -> Any:
        # The eighth token of a row takes a thousandth of the one before it along, as a convolution would.
        mixed = inputs_embeds.clone()
        if mixed.shape[1] > 7:
            mixed[:, 7] += 1e-3 * inputs_embeds[:, 6]
        return body(inputs_embeds=mixed, **inputs)

    monkeypatch.setattr(learner.branch.backbone, "body", leaking)
    with pytest.raises(ModelError, match="see each other"):
        require_apart(learner)
