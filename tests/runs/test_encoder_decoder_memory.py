"""The memory plan of encoder–decoders: counts equal what lies in memory, and an encoder costs where it learns."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone
from hydralign.models.branch import Branch
from hydralign.models.encoder_decoder_sizes import EncoderDecoderSizes, encoder_decoder_sizes_of
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.forms.build import make_policy
from hydralign.runs.encoder_decoder_memory import (
    encoder_decoder_forms,
    encoder_decoder_stored,
    plan_encoder_decoder_memory,
)
from hydralign.runs.memory_plan import MemoryPlan, Stored, Work, memory_lines
from hydralign.testing import TEXT
from hydralign.types import TokenBatch
from tests.models.encoder_decoders import new_encoder_decoder

FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(rank=4),
    "decoder-lora": LoraForm(rank=4, decoder_only=True),
    "top-lora": LoraForm(rank=4, unfrozen_layers=1),
    "hydra": HydraForm(unfrozen_layers=1),
    "hydra-values": HydraForm(unfrozen_layers=1, value="branch"),
}
WORK = Work(prompt=24, answer=10, rows=16, decode_batch_size=8, micro_batch_size=2, minibatch_rows=4)


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer that ends what an encoder reads."""
    return train_tokenizer([TEXT] * 3, vocabulary=300, family="t5")


def sizes_of(family: str, work: Work = WORK) -> EncoderDecoderSizes:
    branch = Branch(EncoderDecoderBackbone(new_encoder_decoder(family)))
    return encoder_decoder_sizes_of(branch, prompt=work.prompt, answer=work.answer)


def plan(form: str, work: Work = WORK, family: str = "t5", **settings: Any) -> MemoryPlan:
    return plan_encoder_decoder_memory(sizes_of(family, work), FORMS[form], work, **settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["t5", "flan-t5", "bart"])
@pytest.mark.parametrize("form", FORMS)
def test_counted_weights_are_those_of_the_policy(form: str, family: str, precision: str, words: Any) -> None:
    policy = make_policy(new_encoder_decoder(family), words, form=FORMS[form], precision=precision)
    before = {name: p.detach().clone() for name, p in policy.trained().items()}
    sizes = encoder_decoder_sizes_of(policy.whole, prompt=8, answer=4)
    own = Stored.of(policy.trained().values(), policy.frozen())
    assert encoder_decoder_stored(sizes, FORMS[form], precision) == own
    assert {name: p.requires_grad for name, p in policy.trained().items()} == dict.fromkeys(before, True)
    assert all(torch.equal(p, before[name]) for name, p in policy.trained().items())


@pytest.mark.parametrize("family", ["t5", "t5-gated", "bart"])
def test_saved_bytes_are_what_autograd_keeps_of_a_whole_model(family: str) -> None:
    """Of more layers than are measured; a layer that is alone owns what T5's others share."""
    layers = (
        {"num_layers": 4, "num_decoder_layers": 5} if "t5" in family else {"encoder_layers": 4, "decoder_layers": 5}
    )
    model = new_encoder_decoder(family, **layers)
    sizes = encoder_decoder_sizes_of(Branch(EncoderDecoderBackbone(model)), prompt=WORK.prompt, answer=WORK.answer)
    seen: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = TokenBatch.of([[7] * WORK.prompt] * 5 + [[7]], [[9] * WORK.answer] * 6)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: seen.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        EncoderDecoderBackbone(model).states(batch)
    kept = sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own)
    parts = [(sizes.encoder, 4), (sizes.decoder, 5)]
    expected = sum(6 * (n * s.trained.per_layer + s.trained.besides) + n * s.trained.constant for s, n in parts)
    assert kept == pytest.approx(expected, rel=0.1)
    for stack, _ in parts:
        assert stack.frozen.per_layer < stack.adapted.per_layer < stack.trained.per_layer


def test_an_encoder_costs_activations_where_it_learns_and_states_where_it_does_not() -> None:
    plans = {name: plan(name) for name in FORMS}
    assert plans["lora"].activations > 1.5 * plans["decoder-lora"].activations > plans["top-lora"].activations
    assert plans["full"].activations > plans["lora"].activations > plans["hydra"].activations
    # Rows × tokens × 32 numbers of 4 bytes.
    assert plans["full"].trunk_states == plans["lora"].trunk_states == 0
    assert plans["decoder-lora"].trunk_states == 16 * 24 * 32 * 4
    assert plans["hydra"].trunk_states == plans["top-lora"].trunk_states == 16 * (24 + 10) * 32 * 4
    assert plan("hydra", precision="bf16").trunk_states == 16 * (24 + 10) * 32 * 2


def test_a_new_model_holds_four_tables_of_embeddings_before_it_ties_them() -> None:
    read, made = plan("hydra"), plan("hydra", fresh=True)
    assert made.loading - read.loading == 3 * 300 * 32 * 4
    assert read.loading == 4 * sizes_of("t5").whole


def test_caches_hold_keys_and_values_of_prompts_and_answers_in_every_decoder_layer() -> None:
    sizes = sizes_of("t5")
    assert sizes.cached_prompt == sizes.cached_answer == 2 * 32 * 4
    assert plan("full").kv_cache == 8 * 3 * (24 + 10) * 2 * 32 * 4


def test_longer_prompts_cost_a_frozen_encoder_no_activations_of_its_own() -> None:
    long = replace(WORK, prompt=48)
    grown = {name: plan(name, long).activations - plan(name).activations for name in ("lora", "hydra")}
    # Two rows of 24 more tokens, 32 numbers each: states that enter, keys and values of one decoder layer; its mask.
    assert 2 * 24 * 4 * 32 * 3 <= grown["hydra"] < 2 * 2 * 24 * 4 * 32 * 3
    assert grown["lora"] > 5 * grown["hydra"]


@pytest.mark.parametrize("form", FORMS)
def test_lines_fit_the_width_and_name_the_other_forms(form: str) -> None:
    others = encoder_decoder_forms(FORMS[form], 3)
    peaks = {name: plan_encoder_decoder_memory(sizes_of("t5"), other, WORK) for name, other in others.items()}
    lines = memory_lines(plan(form), FORMS[form], peaks, WORK)
    assert all(len(line) <= 120 for line in lines)
    assert any("lora: adapters of rank" in line and "on the decoder" in line for line in lines)
    assert not any("four whole models" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["full", "lora", "decoder-lora", "hydra"])
def test_plan_is_within_a_fifth_of_what_is_measured(form: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "memory_plan.py"
    settings = ["--family", "t5", "--geometries", "T", "--precisions", "fp32", "--epochs", "1", "--iters", "1"]
    command = [sys.executable, str(script), *settings, "--forms", form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["worst"] < 0.2, done.stdout
