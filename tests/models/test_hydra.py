"""The hydra form in every family: what its branches say is what the whole model says of each row alone.

Models of tests/models/test_slicing.py: five layers, mixed layer types, rows longer than the sliding window.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hydralign.config.model import Form, HydraForm, LoraForm
from hydralign.generation import sample
from hydralign.methods.start_checks import check_start
from hydralign.models import make_policy
from hydralign.models.backbones.slicing import layers_of
from hydralign.models.backbones.trunk import CausalTrunkStates, lay_out
from hydralign.models.folders.loading import prepare_model
from hydralign.models.kernels.cache import RoomyCache
from hydralign.rollout import collect
from hydralign.testing import LengthReward, tiny_tokenizer
from hydralign.types import Experience, Prompt, SamplingParams, TokenBatch
from tests.conftest import cut_rows, shake, states_of
from tests.models.test_policies import gradients, whole_model_logprobs
from tests.models.test_slicing import FAMILIES, LAYERS, new_model

FORMS: dict[str, Form] = {
    "k1": HydraForm(unfrozen_layers=1),
    "k2-values": HydraForm(unfrozen_layers=2, value="branch"),
    "k4": HydraForm(unfrozen_layers=4),
    "k1-values": HydraForm(unfrozen_layers=1, value="branch"),
    "lora2": LoraForm(rank=2, unfrozen_layers=2),
}
FEW = ("gpt2", "bloom", "mistral", "gemma2")
CASES = [(family, form) for family in FAMILIES for form in ("k1", "k2-values", "k4")]
CASES += [(family, "lora2") for family in (*FEW, "opt", "granite")]
PLAN = SamplingParams(temperature=0.7, min_new_tokens=2, max_new_tokens=24, seed=6)
every_case = pytest.mark.parametrize(("family", "form"), CASES)
few_families = pytest.mark.parametrize("family", FEW)


def new_policy(family: str, form: str | Form, tokenizer: Any, *, precision: str = "fp32") -> Any:
    """Answers end by themselves at every twelfth token id, so at many different lengths."""
    chosen = FORMS[form] if isinstance(form, str) else form
    model = prepare_model(new_model(family), tokenizer)
    if isinstance(chosen, LoraForm) and chosen.targets is None and chosen.adapter is None:
        names = {name.split(".")[-1] for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
        chosen = chosen.model_copy(update={"targets": tuple(sorted(names - {"lm_head"}))})
    policy: Any = make_policy(model, tokenizer, form=chosen, precision=precision)
    policy.stop_ids = tuple(range(5, 300, 12))
    return policy


def some_prompts(count: int = 6) -> list[Prompt]:
    """Prompts of 3 to 28 tokens. Of more than eight rows those that have ended wait for one another in the batch."""
    draw = partial(torch.randint, 2, 300, generator=torch.Generator().manual_seed(3))
    return [Prompt(str(n), tuple(draw((n,)).tolist())) for n in (3, 20, 9, 28, 12, 15, 5, 7, 11, 4)[:count]]


def collected(policy: Any, **plan: Any) -> Experience:
    experience = collect(policy, some_prompts(), LengthReward(3), replace(PLAN, **plan))
    lengths = experience.rollout.rows.lengths_B
    assert int(lengths.max()) > 30
    assert len(set(lengths.tolist())) > 3
    return experience


def trunk_by_hand(policy: Any, rows: TokenBatch, row: int, top: int) -> Tensor:
    """What the whole model hands to its first unfrozen layer for this row alone, its last token included."""
    ids_1T = lay_out(rows)[row : row + 1, : int(rows.lengths_B[row])]
    with torch.no_grad():
        return policy.model(input_ids=ids_1T, output_hidden_states=True).hidden_states[LAYERS - top][0]


@cache
def at_start(family: str, form: str) -> tuple[Any, Experience]:
    """A policy and what it collected, for tests that change neither."""
    policy = new_policy(family, form, tiny_tokenizer())
    return policy, collected(policy)


def moved(family: str, form: str) -> tuple[Any, TokenBatch]:
    """A policy that has left its reference, and rows that bring the states of their trunk."""
    start, experience = at_start(family, form)
    policy = new_policy(family, form, start.tokenizer)
    shake(policy)
    assert experience.rollout.rows.trunk is not None
    return policy, experience.rollout.rows


@every_case
def test_sampler_and_reference_say_what_the_plain_model_says_of_each_row_alone(family: str, form: str) -> None:
    policy, experience = at_start(family, form)
    measured = check_start(policy, experience, fresh=True)
    assert measured["sampler/logprob_drift_max"] < 1e-4
    with torch.no_grad():
        by_hand_BR = whole_model_logprobs(policy, experience.rollout.rows)
    torch.testing.assert_close(experience.ref_logprobs_BR, by_hand_BR, atol=1e-5, rtol=0)
    torch.testing.assert_close(experience.old_logprobs_BR, by_hand_BR, atol=1e-5, rtol=0)


@every_case
def test_branch_says_what_the_moved_plain_model_says_of_each_row_alone(family: str, form: str) -> None:
    policy, rows = moved(family, form)
    with torch.no_grad():
        found_BR, by_hand_BR = policy.evaluate(rows).logprobs_BR, whole_model_logprobs(policy, rows)
    torch.testing.assert_close(found_BR, by_hand_BR, atol=1e-5, rtol=0)
    assert (found_BR - policy.reference_logprobs(rows)).abs().max() > 0.01


@every_case
def test_states_harvested_while_sampling_are_those_of_the_whole_model(family: str, form: str) -> None:
    policy, experience = at_start(family, form)
    rows = experience.rollout.rows
    assert rows.trunk is not None
    for row, length in enumerate(rows.lengths_B.tolist()):
        by_hand_TD = trunk_by_hand(policy, rows, row, len(layers_of(policy.branch.backbone.body)))
        torch.testing.assert_close(states_of(rows)[row, :length], by_hand_TD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_case
def test_policy_and_reference_are_bit_equal_at_the_start(
    family: str, form: str, precision: str, tokenizer: Any
) -> None:
    policy = new_policy(family, form, tokenizer, precision=precision)
    ids_BT = torch.randint(2, 300, (3, 40), generator=torch.Generator().manual_seed(4))
    rows = cut_rows(ids_BT, [5, 20, 11], [35, 7, 20], temperature=0.7, min_new_tokens=3)
    with torch.no_grad():
        assert torch.equal(policy.evaluate(rows).logprobs_BR, policy.reference_logprobs(rows))
        shake(policy)
        assert not torch.equal(policy.evaluate(rows).logprobs_BR, policy.reference_logprobs(rows))


@pytest.mark.parametrize("form", ["k2-values", "lora2"])
@few_families
def test_in_bf16_the_start_passes_both_checks_and_states_take_half_the_room(
    family: str, form: str, tokenizer: Any
) -> None:
    policy = new_policy(family, form, tokenizer, precision="bf16")
    experience = collected(policy)
    assert experience.rollout.rows.trunk is not None
    assert states_of(experience.rollout.rows).dtype == torch.bfloat16
    check_start(policy, experience, fresh=True)


@pytest.mark.parametrize(("states", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_states_are_stored_as_told(states: Any, dtype: torch.dtype, tokenizer: Any) -> None:
    policy = new_policy("llama", HydraForm(unfrozen_layers=2, states=states), tokenizer, precision="bf16")
    rows = collected(policy).rollout.rows
    assert rows.trunk is not None
    assert states_of(rows).dtype == policy.trunk.states(rows).states_BTD.dtype == dtype


@pytest.mark.parametrize("decode_batch_size", [1, 4, 64])
@pytest.mark.parametrize("offload", [False, True])
def test_kept_states_take_no_more_room_than_the_rows(offload: bool, decode_batch_size: int, tokenizer: Any) -> None:
    policy = new_policy("llama", HydraForm(unfrozen_layers=2, offload=offload), tokenizer)
    plan = replace(PLAN, max_new_tokens=32, decode_batch_size=decode_batch_size, seed=8)
    rows = sample(policy, some_prompts(10), plan).rows
    assert rows.trunk is not None
    assert states_of(rows).shape == (*lay_out(rows).shape, 32)
    longest = int(rows.prompt_lengths_B.argmax())
    assert rows.lengths_B[longest] < rows.lengths_B.max() < 60  # a row of a later batch is the widest
    assert states_of(rows).untyped_storage().nbytes() == states_of(rows).numel() * 4
    for row, length in enumerate(rows.lengths_B.tolist()):
        by_hand_TD = trunk_by_hand(policy, rows, row, 2)
        torch.testing.assert_close(states_of(rows)[row, :length], by_hand_TD, atol=1e-5, rtol=0)
    assert not states_of(rows).isnan().any()


def test_offloading_takes_states_to_the_cpu_and_else_they_stay(tokenizer: Any) -> None:
    elsewhere = torch.zeros(1, 2, 32, device="meta")
    assert new_policy("llama", HydraForm(unfrozen_layers=1), tokenizer).trunk.stored(elsewhere).device.type == "meta"
    with pytest.raises(NotImplementedError):  # a tensor without data cannot be brought to the CPU
        new_policy("llama", HydraForm(unfrozen_layers=1, offload=True), tokenizer).trunk.stored(elsewhere)


def test_offloaded_states_change_no_number(tokenizer: Any) -> None:
    on, off = (
        collected(new_policy("mistral", HydraForm(unfrozen_layers=2, offload=offload), tokenizer))
        for offload in (True, False)
    )
    assert on.rollout.rows.trunk is not None
    assert states_of(on.rollout.rows).device.type == "cpu"
    for name in ("old_logprobs_BR", "ref_logprobs_BR", "values_BR"):
        assert torch.equal(getattr(on, name), getattr(off, name))


@pytest.mark.parametrize(
    ("order", "micro"), [([0, 1, 2, 3, 4, 5], 1), ([3, 5, 1, 0, 4, 2], 6), ([2, 0, 5, 3, 1, 4], 4)]
)
@pytest.mark.parametrize("form", ["k1", "k2-values", "lora2"])
@few_families
def test_company_order_and_micro_batches_change_no_gradient_from_harvested_states(
    family: str, form: str, order: list[int], micro: int
) -> None:
    policy, rows = moved(family, form)
    expected, found = gradients(policy, rows, list(range(6)), 6), gradients(policy, rows, order, micro)
    assert expected.keys() == policy.trained().keys()
    scale = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["k1", "k2-values", "lora2"])
@few_families
def test_junk_in_the_padding_of_tokens_and_states_changes_nothing(family: str, form: str) -> None:
    policy, rows = moved(family, form)
    padding_BT = torch.arange(lay_out(rows).shape[1]) >= rows.lengths_B[:, None]
    assert rows.trunk is not None
    assert padding_BT.any()
    filled = states_of(rows).masked_fill(padding_BT[..., None], 5.0)
    prompt_BQ, response_BR = (
        tokens.masked_fill(torch.arange(tokens.shape[1]) >= lengths_B[:, None], 77)
        for tokens, lengths_B in ((rows.prompt_BQ, rows.prompt_lengths_B), (rows.response_BR, rows.response_lengths_B))
    )
    trunk = CausalTrunkStates(filled, rows.lengths_B)
    junk = replace(rows, prompt_BQ=prompt_BQ, response_BR=response_BR, trunk=trunk)
    with torch.no_grad():
        for plain, other in zip(policy.evaluate(rows), policy.evaluate(junk), strict=True):
            torch.testing.assert_close(other, plain, atol=1e-5, rtol=0)
        alone = [policy.evaluate(rows.select(torch.tensor([row]))) for row in range(len(rows))]
        together = policy.evaluate(rows)
    for row, one in enumerate(alone):
        for part_1R, whole_BR in zip(one, together, strict=True):
            torch.testing.assert_close(part_1R[0], whole_BR[row, : part_1R.shape[1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_end_at_different_times_decode_as_each_would_alone(
    family: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    policy, left = new_policy(family, "k1", tokenizer), list[int]()
    shake(policy)
    select = RoomyCache.batch_select_indices

    def watched(cache: RoomyCache, rows: Tensor) -> None:
        left.append(len(rows))
        select(cache, rows)

    monkeypatch.setattr(RoomyCache, "batch_select_indices", watched)
    whole = sample(policy, some_prompts(10), PLAN)
    assert len(left) >= 2
    assert max(left) < 9
    alone = sample(policy, some_prompts(10), replace(PLAN, decode_batch_size=1))
    assert torch.equal(lay_out(whole.rows), lay_out(alone.rows))
    torch.testing.assert_close(whole.old_logprobs_BR, alone.old_logprobs_BR, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.values_BR, alone.values_BR, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top", [1, 2, 4])
@few_families
def test_trained_are_the_top_layers_with_the_final_norm_and_the_value_head(
    family: str, top: int, tokenizer: Any
) -> None:
    policy = new_policy(family, HydraForm(unfrozen_layers=top), tokenizer)
    model, layers = policy.model, {"gpt2": "transformer.h", "bloom": "transformer.h"}.get(family, "model.layers")
    norm = {"gpt2": "transformer.ln_f", "bloom": "transformer.ln_f"}.get(family, "model.norm")
    wanted = [f"{layers}.{i}." for i in range(LAYERS - top, LAYERS)] + [f"{norm}."]
    expected = {name for name, _ in model.named_parameters() if name.startswith(tuple(wanted))}
    assert policy.trained().keys() == expected | {"value_head.weight", "value_head.bias"}


def test_value_branch_is_a_trained_copy_that_moves_no_logprob() -> None:
    policy, rows = moved("llama", "k2-values")
    own = {name: p for name, p in policy.trained().items() if name.startswith("value_branch.")}
    assert len(own) == 2 * 9 + 1  # seven matrices and two norms a layer, and the final norm
    before = policy.evaluate(rows)
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(0.1)
    after = policy.evaluate(rows)
    assert torch.equal(before.logprobs_BR, after.logprobs_BR)
    assert (before.values_BR - after.values_BR).abs().max() > 1e-3
