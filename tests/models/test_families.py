"""Other architectures, tiny and random: sequences longer than the sliding window, mixed layer types, scaled logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hydralign.config.model import FullForm, LoraForm
from hydralign.methods.start_checks import check_start
from hydralign.models import make_policy
from hydralign.models.folders.loading import prepare_model
from hydralign.rollout import collect
from hydralign.testing import LengthReward, tiny_prompts
from hydralign.types import SamplingParams
from tests.models import test_slicing as split

SIZES = {**split.SIZES, "num_hidden_layers": 2}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
OLD = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {**GROUPED, "sliding_window": 8},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "qwen3": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "sliding_window": 8},
    "phi3": {**SIZES, "num_key_value_heads": 1},
    "granite": {**SIZES, "num_key_value_heads": 1, "logits_scaling": 4.0},
    "cohere": {**SIZES, "num_key_value_heads": 1},
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {**OLD, "hidden_size": 32},
    "gptj": {**OLD, "n_embd": 32, "n_positions": 64, "rotary_dim": 8},
    "gpt_neo": {
        **SIZES, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8
    },
}  # fmt: skip


@pytest.mark.parametrize("form", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_samples_what_it_evaluates_and_starts_at_its_reference(family: str, form: str, tokenizer: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    names = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = tuple(sorted(name for name in names if name.endswith(("o_proj", "dense", "out_proj"))))
    chosen = LoraForm(rank=2, targets=targets) if form == "lora" else FullForm()
    policy = make_policy(prepare_model(model, tokenizer), tokenizer, form=chosen)
    plan = SamplingParams(max_new_tokens=24, min_new_tokens=20)
    experience = collect(policy, tiny_prompts(tokenizer) * 3, LengthReward(3), plan)
    measured = check_start(policy, experience, fresh=True)
    assert measured["sampler/logprob_drift_max"] < 1e-4
