"""The memory plan: counts equal what lies in memory, parts grow with what they should, the benchmark agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.slicing import layers_of
from hydralign.models.branch import Branch
from hydralign.models.sizes import LayerSize, ModelSizes, Saved, sizes_of
from hydralign.runs.memory_plan import (
    MB,
    RUNTIME,
    SEPARATE,
    MemoryPlan,
    Stored,
    Work,
    form_name,
    memory_lines,
    other_forms,
    plan_memory,
    stored_by,
)
from hydralign.testing import tiny_model, tiny_policy
from tests.conftest import FAMILIES, FORMS

SIZES = ModelSizes(
    layers=(LayerSize(parameters=120, matrices=100, inputs=10, outputs=20),) * 3,
    embedding=1000,
    final=5,
    head=0,
    width=10,
    vocabulary=100,
    trained=Saved(per_token=64.0, last=48.0),
    frozen=Saved(per_token=32.0, last=24.0),
    cached=80.0,
)
WORK = Work(prompt=6, answer=4, rows=16, decode_batch_size=8, micro_batch_size=2, minibatch_rows=4)
VALUE_HEAD = 4 * 11
ALL_FORMS: list[Form | str] = [*FORMS.values(), SEPARATE]


def plan(form: Any, work: Work = WORK, sizes: ModelSizes = SIZES, **settings: Any) -> MemoryPlan:
    return plan_memory(sizes, form, work, **settings)


@pytest.mark.parametrize(
    ("form", "precision", "trained", "fixed"),
    [
        # 1,000 + 3·120 + 5 = 1,365 parameters, of them 300 in matrices of layers, and a tied head of 1,000.
        (FullForm(), "fp32", 4 * 1365, 4 * 1365),
        (FullForm(), "bf16", 4 * 1365, 4 * 1065 + 2 * 300),
        (LoraForm(rank=2), "fp32", 4 * 2 * 3 * 30, 4 * 1365),
        (LoraForm(rank=2), "bf16", 4 * 2 * 3 * 30, 4 * 65 + 2 * 1300),
        (LoraForm(rank=2, unfrozen_layers=1), "fp32", 4 * 2 * 30, 4 * (1365 + 2 * 30)),
        # A branch of one layer and the final norm: 125 trained, 125 of the reference, 1,240 below.
        (HydraForm(unfrozen_layers=1), "fp32", 4 * 125, 4 * (1240 + 125)),
        (HydraForm(unfrozen_layers=1), "bf16", 4 * 125, 4 * (40 + 25) + 2 * (1200 + 100)),
        (HydraForm(unfrozen_layers=1, value="branch"), "fp32", 4 * 250, 4 * (1240 + 125)),
        (SEPARATE, "fp32", 4 * 2 * 1365, 4 * 2 * 1365 + VALUE_HEAD),
    ],
)
def test_weights_by_hand(form: Any, precision: str, trained: int, fixed: int) -> None:
    assert stored_by(SIZES, form, precision) == Stored(trained + VALUE_HEAD, fixed)


@pytest.mark.parametrize("form", [FullForm(), LoraForm(rank=2), HydraForm(unfrozen_layers=1)])
def test_without_a_critic_no_value_head_is_counted(form: Form) -> None:
    both = [stored_by(SIZES, form, "fp32", critic=critic) for critic in (True, False)]
    assert (both[0].trained - both[1].trained, both[0].fixed - both[1].fixed) == (VALUE_HEAD, 0)
    plans = [plan(form, critic=critic) for critic in (True, False)]
    assert plans[0].optimizer - plans[1].optimizer == 2 * VALUE_HEAD
    assert plan(form, stored=both[1]) == plans[1]


def test_head_of_its_own_is_counted_once_per_language_model() -> None:
    untied = replace(SIZES, head=1000)
    assert stored_by(untied, FullForm(), "fp32") == Stored(4 * 2365 + VALUE_HEAD, 4 * 2365)
    assert stored_by(untied, SEPARATE, "fp32") == Stored(4 * (2365 + 1365) + VALUE_HEAD, 4 * (2365 + 1365) + VALUE_HEAD)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMS)
def test_counted_weights_are_those_of_the_policy(name: str, family: str, precision: str, tokenizer: Any) -> None:
    form = FORMS[name]
    policy = tiny_policy(family=family, form=form, precision=precision, tokenizer=tokenizer)
    sizes = sizes_of(policy.whole, columns=8, answer=4)
    own = Stored.of(policy.trained().values(), policy.frozen())
    assert stored_by(sizes, form, precision) == own
    plain = Branch(CausalBackbone(tiny_model(tokenizer, family=family), precision=precision))
    assert sizes_of(plain, columns=8, answer=4) == sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_bytes_are_what_autograd_keeps_of_a_whole_model(family: str, tokenizer: Any) -> None:
    model = tiny_model(tokenizer, family=family, layers=4)
    sizes = sizes_of(Branch(CausalBackbone(model)), columns=16, answer=8)
    seen: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: seen.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        model.base_model(inputs_embeds=torch.randn(3, 16, 32), use_cache=False)
    kept = sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own)
    assert kept == pytest.approx(3 * 16 * 4 * sizes.trained.per_token, rel=0.1)
    assert sizes.frozen.per_token < sizes.trained.per_token
    assert sizes.trained.last < sizes.trained.per_token
    whole = sizes_of(Branch(CausalBackbone(model)), columns=16, answer=16)
    assert whole.trained.last == whole.trained.per_token == sizes.trained.per_token
    # Rotary angles depend on the columns alone.
    assert sizes.trained.per_layer == sizes.frozen.per_layer == (0 if family == "gpt2" else 2 * 16 * 16 * 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_copies_of_trained_weights_are_saved_once_per_layer(family: str, tokenizer: Any) -> None:
    policy = tiny_policy(family=family, tokenizer=tokenizer)
    sizes = sizes_of(Branch(CausalBackbone(policy.model, precision="bf16")), columns=16, answer=8)
    layer = layers_of(policy.whole.backbone.body)[0]
    weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert sizes.trained.per_layer - sizes.frozen.per_layer == 2 * weights


def test_cache_holds_keys_and_values_of_every_layer(tokenizer: Any) -> None:
    sizes = sizes_of(Branch(CausalBackbone(tiny_model(tokenizer))), columns=8, answer=4)
    assert sizes.cached == 2 * 32 * 4
    assert plan(HydraForm(unfrozen_layers=1), sizes=sizes).kv_cache == 8 * 10 * 2 * sizes.cached
    assert (
        sizes_of(Branch(CausalBackbone(tiny_model(tokenizer), precision="bf16")), columns=8, answer=4).cached
        == 2 * 32 * 2
    )


def test_measuring_leaves_the_model_as_it_was(tokenizer: Any) -> None:
    policy = tiny_policy(form=HydraForm(unfrozen_layers=1), tokenizer=tokenizer)
    before = {name: p.detach().clone() for name, p in policy.trained().items()}
    learns = [p.requires_grad for p in policy.model.parameters()]
    sizes_of(policy.whole, columns=8, answer=4)
    assert all(torch.equal(p, before[name]) for name, p in policy.trained().items())
    assert [p.requires_grad for p in policy.model.parameters()] == learns
    assert all(p.grad is None for p in policy.trained().values())


CPU_OR_NOT = {"cpu", "accumulates"}


def changed(a: MemoryPlan, b: MemoryPlan) -> set[str]:
    """Parts that differ; all of them must have grown."""
    old, new = asdict(a), asdict(b)
    parts = {name for name in old if old[name] != new[name]} - CPU_OR_NOT
    assert all(new[name] > old[name] for name in parts)
    return parts


GROWS: dict[str, tuple[dict[str, int], set[str]]] = {
    "rows": ({"rows": 32}, {"trunk_states", "reading"}),
    "decode_batch_size": ({"decode_batch_size": 16}, {"kv_cache", "reading", "sampling_logits"}),
    "micro_batch_size": ({"micro_batch_size": 4}, {"activations", "backward", "update_logits"}),
    "prompt": ({"prompt": 12}, {"trunk_states", "kv_cache", "reading", "activations", "backward"}),
    "answer": ({"answer": 8}, {"trunk_states", "kv_cache", "reading", "activations", "backward", "update_logits"}),
    "minibatch_rows": ({"minibatch_rows": 8}, set()),
}


@pytest.mark.parametrize(("more", "parts"), GROWS.values(), ids=GROWS)
def test_plan_grows_with_the_work_and_where_it_should(more: dict[str, int], parts: set[str]) -> None:
    form = HydraForm(unfrozen_layers=1)
    assert changed(plan(form), plan(form, replace(WORK, **more))) == parts
    without_trunk = changed(plan(FullForm()), plan(FullForm(), replace(WORK, **more)))
    assert without_trunk == parts - {"trunk_states"} - ({"reading"} if set(more) & {"rows", "answer"} else set())


def test_plan_grows_with_k_where_it_should() -> None:
    parts = changed(plan(HydraForm(unfrozen_layers=1)), plan(HydraForm(unfrozen_layers=2)))
    assert parts == {"weights", "gradients", "optimizer", "activations"}
    branch = HydraForm(unfrozen_layers=1, value="branch")
    assert changed(plan(HydraForm(unfrozen_layers=1)), plan(branch)) == parts


def test_forms_stand_in_the_expected_order() -> None:
    peaks = [plan(form, cpu=False).peak for form in (SEPARATE, FullForm(), HydraForm(unfrozen_layers=1))]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    assert plan(FullForm(), precision="bf16").weights < plan(FullForm()).weights


def test_optimizer_is_two_moments_or_none() -> None:
    assert plan(FullForm()).optimizer == 2 * plan(FullForm()).gradients == 2 * (4 * 1365 + VALUE_HEAD)
    assert plan(FullForm(), moments=0).optimizer == 0


PARTS: dict[str, Any] = {
    "weights": 100.0,
    "gradients": 10.0,
    "optimizer": 20.0,
    "trunk_states": 1.0,
    "kv_cache": 3.0,
    "reading": 2.0,
    "sampling_logits": 3.0,
    "activations": 30.0,
    "update_logits": 10.0,
    "backward": 5.0,
    "loading": 90.0,
}


def test_peak_is_that_of_the_phase_that_needs_most() -> None:
    device = MemoryPlan(**PARTS, cpu=False)
    assert device.phases == {"loading": 90, "sampling": 139, "updating": 161}
    assert (device.peak, device.peak_phase) == (161, "updating")
    assert replace(device, accumulates=True).peak == 171
    assert replace(device, backward=15.0).peak == 166
    assert replace(device, gradients=60.0).phases["updating"] == 181
    assert replace(device, loading=500.0).peak_phase == "loading"


def test_a_frozen_head_is_laid_out_once_more_for_long_answers_in_fp32_on_a_cpu() -> None:
    long, form = replace(WORK, answer=32), HydraForm(unfrozen_layers=1)
    assert plan(form, long).packed == plan(LoraForm(), long).packed == 4 * 100 * 10
    others = [plan(form), plan(FullForm(), long), plan(form, long, cpu=False), plan(form, long, precision="bf16")]
    assert [other.packed for other in others] == [0, 0, 0, 0]
    assert replace(plan(form, long), packed=0.0).peak == plan(form, long).peak - 4000


def test_cpu_keeps_what_sampling_used() -> None:
    assert MemoryPlan(**PARTS).peak == RUNTIME + 121 + 8 + 40


def test_offloaded_states_take_nothing_of_an_accelerator() -> None:
    form = HydraForm(unfrozen_layers=1, offload=True)
    assert plan(form, cpu=False).trunk_states == 0
    assert plan(form, cpu=True).trunk_states == 16 * 10 * 10 * 4
    assert plan(HydraForm(unfrozen_layers=1), precision="bf16").trunk_states == 16 * 10 * 10 * 2


def test_other_forms_are_all_but_the_own_with_its_k() -> None:
    names = list(other_forms(HydraForm(unfrozen_layers=3), layers=6))
    assert names == [
        "full: every layer trained, and a frozen copy",
        "lora: adapters of rank 16 on all layers",
        "lora: adapters of rank 16 on top layers, k = 3",
        "hydra: k = 3 layers trained, value branch",
        "separate: four whole models (policy and value trained, reference, reward)",
    ]
    assert [form_name(form) for form in other_forms(FullForm(), layers=1).values()] == [names[1], names[4]]


@pytest.mark.parametrize("name", FORMS)
def test_lines_fit_the_width_and_name_every_part(name: str) -> None:
    form = FORMS[name]
    others = {label: plan(other) for label, other in other_forms(form, layers=3).items()}
    lines = memory_lines(plan(form), form, others, WORK)
    assert all(len(line) <= 120 for line in lines)
    told = {line.split("  ")[0] for line in (line.strip() for line in lines)}
    assert told >= {"weights", "gradients", "optimizer", "KV cache", "next tokens", "activations", "head", "peak"}
    assert ("trunk cache" in told) == (name.startswith("hydra"))
    assert sum(any(label in line for label in others) for line in lines) == len(others) == 5
    assert f"{plan(form).peak / MB:,.1f}" in lines[-len(others) - 2]


def test_offload_that_changes_nothing_is_told() -> None:
    form = HydraForm(unfrozen_layers=1, offload=True)
    on_cpu, elsewhere = ("\n".join(memory_lines(plan(form, cpu=cpu), form, {}, WORK)) for cpu in (True, False))
    assert "on a CPU, offload changes nothing" in on_cpu
    assert "trunk cache" not in elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("form", ["full", "lora", "hydra"])
def test_plan_is_within_a_fifth_of_what_is_measured(form: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "memory_plan.py"
    settings = ["--geometries", "S", "--precisions", "fp32", "--forms", form, "--epochs", "1", "--iters", "1"]
    done = subprocess.run([sys.executable, str(script), *settings], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["worst"] < 0.2, done.stdout
