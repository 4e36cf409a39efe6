"""What is checked when a model is loaded: that body and head are known, and that sampling reads what training reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hydralign.errors import ModelError
from hydralign.models import make_policy
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.branch import Branch
from hydralign.models.checks import check_decoding, check_readout
from hydralign.models.classifiers.training import wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.folders.loading import prepare_model
from hydralign.models.forms.build import make_frozen_policy, make_supervised_policy
from hydralign.models.kernels.cache import RoomyCache
from hydralign.models.versions import DynamicCache, cache_argument
from hydralign.testing import tiny_model
from tests.conftest import FORMS
from tests.models.test_families import GROUPED, SIZES

MIXED = {**GROUPED, "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
PLAIN = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
RECURRENT: dict[str, dict[str, Any]] = {
    "lfm2": {**SIZES, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **MIXED, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "num_experts": 0,
    },
    "jamba": {
        **SIZES, "num_key_value_heads": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1,
        "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
    },
    "minimax": {**MIXED, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 16},
    "mamba": {**PLAIN, "state_size": 4},
    "rwkv": {**PLAIN, "attention_hidden_size": 32, "intermediate_size": 64, "context_length": 64},
}  # fmt: skip
"""Layers that keep other state than keys and values. The last two take a cache and leave it alone."""


def new_model(family: str, tokenizer: Any, **sizes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prepare_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)), tokenizer)


@pytest.mark.parametrize("family", RECURRENT)
def test_layers_with_a_state_of_their_own_are_refused_before_sampling_and_not_for_sft(
    family: str, tokenizer: Any
) -> None:
    model = new_model(family, tokenizer, **RECURRENT[family])
    make_supervised_policy(model, tokenizer)
    reason = rf"{type(model).__name__}.* with a key-value cache .*keys and values"
    policies: list[Any] = [partial(make_policy, form=form) for form in FORMS.values()]
    for sampled in (*policies, make_frozen_policy):
        with pytest.raises(ModelError, match=reason) as error:
            sampled(model, tokenizer)
        assert "sft can train this one" in str(error.value)


@pytest.mark.parametrize("part", ["mask", "rows"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_that_forgets_padding_or_who_left_is_noticed(
    family: str, part: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tokenizer, family=family)
    check_decoding(Branch(CausalBackbone(model)))
    if part == "mask":
        forward = model.base_model.forward
        monkeypatch.setattr(
            model.base_model, "forward", lambda *, position_ids=None, attention_mask=None, **x: forward(**x)
        )
    else:
        select = RoomyCache.batch_select_indices
        monkeypatch.setattr(
            RoomyCache, "batch_select_indices", lambda cache, rows: select(cache, torch.arange(len(rows)))
        )
    with pytest.raises(ModelError, match=r"differ from those of a plain pass by \d"):
        check_decoding(Branch(CausalBackbone(model)))


def test_states_that_turn_into_no_numbers_while_decoding_are_noticed(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tokenizer)
    forward, calls = model.base_model.forward, count()

    def poisoned(**inputs: Any) -> Any:
        out = forward(**inputs)
        if inputs.keys() & {"past_key_values", "cache"} and next(calls) == 1:
            out.last_hidden_state = out.last_hidden_state * math.nan
        return out

    monkeypatch.setattr(model.base_model, "forward", poisoned)
    with pytest.raises(ModelError, match="differ from those of a plain pass by nan"):
        check_decoding(Branch(CausalBackbone(model)))


def test_a_body_without_final_states_is_refused_by_name(tokenizer: Any) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
    model = new_model("llama4_text", tokenizer, **GROUPED, **experts)
    assert model.base_model is model
    for read in (make_policy, make_supervised_policy):
        with pytest.raises(ModelError, match=r"Llama4ForCausalLM cannot be read as a body .*no .*last_hidden_state"):
            read(model, tokenizer)


def test_memory_that_runs_out_in_a_check_is_no_fault_of_the_architecture(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CausalBackbone, "embed", full)
    branch = Branch(CausalBackbone(tiny_model(tokenizer)))
    for check in (check_readout, check_decoding):
        with pytest.raises(torch.OutOfMemoryError):
            check(branch)


class _Renamed:
    def forward(self, inputs_embeds: Any = None, cache: Any = None, use_cache: bool | None = None) -> None: ...


class _Classic:
    def forward(self, inputs_embeds: Any = None, past_key_values: Any = None, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(("body", "name"), [(_Renamed(), "cache"), (_Classic(), "past_key_values")])
def test_cache_is_passed_by_the_name_that_the_model_takes(body: Any, name: str) -> None:
    cache = object()
    assert cache_argument(body, cache) == {name: cache}


def doubled(out: Any) -> Any:
    out.logits = out.logits * 2
    return out


def short_states(model: Any) -> None:
    forward = model.base_model.forward

    def narrower(*args: Any, **inputs: Any) -> Any:
        out = forward(*args, **inputs)
        out.last_hidden_state = out.last_hidden_state[..., :-1]
        return out

    model.base_model.forward = narrower
    model.forward = lambda input_ids, **_: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 300))


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "logits of another kind": (
        lambda model: setattr(model, "forward", partial(lambda f, **x: doubled(f(**x)), model.forward)),
        "differ from its own",
    ),
    "states of another width": (short_states, "a value head of one width"),
    "no final states": (
        lambda model: setattr(model.base_model, "forward", lambda **_: SimpleNamespace()),
        "cannot be read as a body with a head",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_architecture_is_told_which_others_can_be_used(case: str, tokenizer: Any) -> None:
    change, reason = REFUSED[case]
    model = tiny_model(tokenizer, family="llama")
    change(model)
    branch = Branch(CausalBackbone(model))
    with pytest.raises(ModelError, match=rf"{reason}.* such as gpt2, llama, mistral"):
        check_readout(branch)


def test_classifier_of_an_unknown_build_is_refused_with_a_way_out(tokenizer: Any) -> None:
    sizes: dict[str, Any] = {"family": "gpt2", "layers": 1, "width": 16, "heads": 2, "context": 32}
    for outcome, reason in ((None, "cannot be read as a classifier"), (5.0, "differ from its own by")):
        model = make_classifier(tokenizer, **sizes, labels=("score",))
        forward = model.forward

        def changed(outcome: Any = outcome, forward: Any = forward, **inputs: Any) -> Any:
            return outcome if outcome is None else SimpleNamespace(logits=forward(**inputs).logits + outcome)

        model.forward = changed
        with pytest.raises(ModelError, match=f"{reason}.* Start from a language model such as gpt2, llama"):
            wrap_classifier(model, tokenizer)


@torch.no_grad()
def test_the_roomy_cache_holds_what_the_plain_one_does(tokenizer: Any) -> None:
    model = tiny_model(tokenizer, family="llama")
    ids_BT = torch.arange(12).view(2, 6)
    roomy, plain = RoomyCache(model.config.num_hidden_layers, 9), DynamicCache()
    for cache in (roomy, plain):
        model(input_ids=ids_BT[:, :4], past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([1]))
        model(input_ids=ids_BT[1:, 4:], past_key_values=cache, use_cache=True)
    for ours, theirs in zip(roomy.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.keys.shape[2] == 6
