"""Rotary positions that depend on the longest row of a batch are never used beyond the length where they begin to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.config.sft import SFTConfig
from hydralign.errors import ConfigError, DataError, ModelError
from hydralign.generation.sampler import check_context
from hydralign.methods.sft import max_tokens_of
from hydralign.models import make_policy
from hydralign.models.backbones.rope import rope_limit
from hydralign.models.classifiers.loading import longest_text
from hydralign.models.folders.loading import context_of
from hydralign.models.forms.build import make_frozen_policy, make_supervised_policy
from hydralign.rewards.reward_model import RewardModel
from hydralign.testing import tiny_prompts
from hydralign.types import SamplingParams, TokenBatch
from tests.models.test_slicing import SIZES

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [9.0] * 8, "factor": 4.0}
LONG |= {"original_max_position_embeddings": 16, "rope_theta": 10000.0}
SHARED: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "phi3": {"original_max_position_embeddings": 16, "rope_scaling": {**LONG, "type": "longrope"}},
    "llama": {"rope_parameters": LONG},
    "gemma3_text": {
        "head_dim": 16,
        "rope_parameters": {
            "full_attention": LONG,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
}


def config_of(family: str, **changes: Any) -> Any:
    return AutoConfig.for_model(family, **{**SHARED, **CONFIGS[family], **changes})


def model_of(family: str, build: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build.from_config(config_of(family, **changes)).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_context_ends_where_a_batch_would_change_its_positions(family: str) -> None:
    model = model_of(family)
    assert (model.config.max_position_embeddings, context_of(model)) == (64, 16)


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, None),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, None),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, 64),
    ],
)
def test_limit_is_set_by_kinds_that_read_the_batch(parameters: dict[str, Any], limit: int | None) -> None:
    assert rope_limit(model_of("llama", rope_parameters=parameters)) == limit


FORMS: dict[str, Form] = {
    "full": FullForm(),
    "hydra": HydraForm(unfrozen_layers=1),
    "lora": LoraForm(rank=2, targets=("o_proj",)),
}


@pytest.mark.parametrize("form", FORMS)
def test_policy_refuses_rows_and_answers_beyond_the_limit(form: str, tokenizer: Any) -> None:
    policy = make_policy(model_of("phi3"), tokenizer, form=FORMS[form])
    prompts = tiny_prompts(tokenizer)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    check_context(policy, prompts, SamplingParams(max_new_tokens=16 - longest))
    with pytest.raises(ConfigError, match=r"context holds 16: beyond 16 tokens its rotary positions .*max_new_tokens"):
        check_context(policy, prompts, SamplingParams(max_new_tokens=17 - longest))
    short, long = TokenBatch.of([[5, 6, 7]], [[8, 9]]), TokenBatch.of([[5, 6, 7]], [[8] * 14])
    assert policy.evaluate(short).logprobs_BR.isfinite().all()
    for read in (policy.evaluate, policy.reference_logprobs):
        with pytest.raises(ModelError, match="reads at most 16: beyond 16 tokens"):
            read(long)


def test_reader_and_student_stop_at_the_limit(tokenizer: Any) -> None:
    reader, student = (
        make_frozen_policy(model_of("phi3"), tokenizer),
        make_supervised_policy(model_of("phi3"), tokenizer),
    )
    assert reader.context == 16
    assert max_tokens_of(SFTConfig(), student) == 16
    with pytest.raises(DataError, match=r"max_tokens=17 .* rotary positions .* Set sft.max_tokens to 16 or less"):
        max_tokens_of(SFTConfig(max_tokens=17), student)


def test_reward_model_reads_no_more_than_the_limit(tokenizer: Any) -> None:
    model = model_of("phi3", AutoModelForSequenceClassification, num_labels=1)
    assert longest_text(model, tokenizer) == 16
    assert RewardModel(model, tokenizer).max_tokens == 16
    with pytest.raises(ModelError, match="max_tokens=17, .* at most 16 tokens: beyond 16"):
        RewardModel(model, tokenizer, max_tokens=17)
