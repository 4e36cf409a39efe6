"""What every policy form must keep: log-probabilities that nothing but the tokens decides, and a true reference."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.model import LoraForm
from hydralign.errors import ConfigError, ModelError
from hydralign.models import load_policy, make_policy
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.forms.build import make_frozen_policy, make_supervised_policy
from hydralign.models.forms.lora import require_rank_fits
from hydralign.models.heads.token import TokenHead
from hydralign.models.policy import Policy
from hydralign.testing import tiny_model, tiny_policy, tiny_tokenizer
from hydralign.types import TokenBatch
from tests.conftest import FORMS, shake, values_of


def whole_model_logprobs(policy: Any, rows: TokenBatch) -> torch.Tensor:
    """By hand: each row alone, unpadded, through the model's own forward, then a plain log-softmax."""
    out_BR = torch.zeros(len(rows), rows.width)
    for row in range(len(rows)):
        q, r = int(rows.prompt_lengths_B[row]), int(rows.response_lengths_B[row])
        ids = lay_out(rows)[row, : q + r]
        logits = policy.model(input_ids=ids[None]).logits[0] / rows.temperature
        for t in range(r):
            scores = logits[q + t - 1].clone()
            if t < rows.min_new_tokens:
                scores[list(policy.stop_ids)] = -math.inf
            out_BR[row, t] = torch.log_softmax(scores, -1)[ids[q + t]]
    return out_BR


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_each_row_alone_in_the_plain_model(
    policy: Policy, rows: TokenBatch, temperature: float
) -> None:
    shake(policy)
    rows = replace(rows, temperature=temperature, min_new_tokens=2, stop_ids=policy.stop_ids)
    with torch.no_grad():
        torch.testing.assert_close(
            policy.evaluate(rows).logprobs_BR, whole_model_logprobs(policy, rows), atol=1e-5, rtol=0
        )


def test_entropy_is_that_of_the_sampling_distribution(policy: Policy) -> None:
    rows = TokenBatch.of([[5, 6]], [[7]], temperature=0.5)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
        p = torch.softmax(logits / 0.5, -1)
        expected = -(p * p.log()).sum()
        assert policy.evaluate(rows).entropy_BR.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_policy_and_reference_are_bit_equal_at_the_start(
    family: str, form: str, precision: str, temperature: float, rows: TokenBatch, tokenizer: Any
) -> None:
    policy = tiny_policy(family=family, form=FORMS[form], precision=precision, tokenizer=tokenizer)
    rows = replace(rows, temperature=temperature)
    with torch.no_grad():
        assert torch.equal(policy.evaluate(rows).logprobs_BR, policy.reference_logprobs(rows))


def test_reference_stays_where_it_was_when_the_policy_moves(policy: Policy, rows: TokenBatch) -> None:
    start_BR = policy.reference_logprobs(rows)
    shake(policy)
    with torch.no_grad():
        assert not torch.equal(policy.evaluate(rows).logprobs_BR, start_BR)
    assert torch.equal(policy.reference_logprobs(rows), start_BR)


def test_pretrained_adapter_is_its_own_reference(tmp_path: Path, rows: TokenBatch, tokenizer: Any) -> None:
    first = tiny_policy(form=LoraForm(type="lora", rank=4), tokenizer=tokenizer)
    bare_BR = first.reference_logprobs(rows)
    shake(first)
    with torch.no_grad():
        trained_BR = first.evaluate(rows).logprobs_BR
    first.save(tmp_path / "adapter")
    again = tiny_policy(form=LoraForm(type="lora", adapter=str(tmp_path / "adapter")), tokenizer=tokenizer)
    with torch.no_grad():
        assert torch.equal(again.evaluate(rows).logprobs_BR, again.reference_logprobs(rows))
    torch.testing.assert_close(again.reference_logprobs(rows), trained_BR, atol=1e-5, rtol=0)
    assert (again.reference_logprobs(rows) - bare_BR).abs().max() > 0.01
    shake(again, seed=8)
    torch.testing.assert_close(again.reference_logprobs(rows), trained_BR, atol=1e-5, rtol=0)
    assert {name for name in again.trained() if "reference" in name} == set()


def gradients(policy: Policy, rows: TokenBatch, order: list[int], micro: int) -> dict[str, torch.Tensor]:
    """Of the sum of log-probabilities and values, each token weighted by its own number, over micro-batches."""
    for parameter in policy.trained().values():
        parameter.grad = None
    weight_BR = torch.arange(1.0, len(rows) * rows.width + 1).view(len(rows), rows.width)
    for part in torch.tensor(order).split(micro):
        few = rows.select(part)
        evaluation = policy.evaluate(few)
        weights = weight_BR[part, : few.width] * few.mask_BR
        ((evaluation.logprobs_BR + values_of(evaluation)) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.trained().items() if p.grad is not None}


@pytest.mark.parametrize(("order", "micro"), [([0, 1, 2, 3], 1), ([3, 1, 0, 2], 4), ([2, 0, 3, 1], 3)])
def test_company_order_and_micro_batches_change_no_gradient(
    policy: Policy, rows: TokenBatch, order: list[int], micro: int
) -> None:
    shake(policy)
    expected = gradients(policy, rows, [0, 1, 2, 3], 4)
    found = gradients(policy, rows, order, micro)
    scale = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_changes_nothing(policy: Policy, rows: TokenBatch) -> None:
    prompt_BQ, response_BR = (
        torch.cat([x, torch.full((len(rows), 5), 42)], dim=1) for x in (rows.prompt_BQ, rows.response_BR)
    )
    for row, (prompt, response) in enumerate(zip(rows.prompt_lengths_B, rows.response_lengths_B, strict=True)):
        prompt_BQ[row, prompt:], response_BR[row, response:] = 99, 98
    junk = replace(rows, prompt_BQ=prompt_BQ, response_BR=response_BR)
    with torch.no_grad():
        for plain, other in zip(policy.evaluate(rows), policy.evaluate(junk), strict=True):
            torch.testing.assert_close(other, plain, atol=1e-5, rtol=0)


def test_values_start_at_zero_and_read_the_state_before_each_token(policy: Policy, rows: TokenBatch) -> None:
    with torch.no_grad():
        assert values_of(policy.evaluate(rows)).abs().max() == 0
        shake(policy)
        values_BR = values_of(policy.evaluate(rows))
        changed = rows.response_BR.clone()
        changed[1, 2] = 77  # the third answer token of row 1
        moved_R = (values_of(policy.evaluate(replace(rows, response_BR=changed))) - values_BR)[1].abs()
    assert moved_R[:3].max() < 1e-6
    assert moved_R[3:].min() > 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_values_alone_are_those_of_evaluate_and_need_no_output_head(
    form: str, precision: str, rows: TokenBatch, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(form=FORMS[form], precision=precision, tokenizer=tokenizer)
    shake(policy)
    with torch.no_grad():
        expected_BR = values_of(policy.evaluate(rows))
        monkeypatch.delattr(TokenHead, "block")
        monkeypatch.delattr(TokenHead, "__call__")
        assert torch.equal(policy.read_values(rows), expected_BR)
    assert expected_BR.abs().max() > 1e-3


def test_value_head_has_width_plus_one_parameters(policy: Policy) -> None:
    assert sum(p.numel() for n, p in policy.trained().items() if n.startswith("value_head.")) == 32 + 1


def test_lora_trains_adapters_and_value_head_only(tokenizer: Any) -> None:
    policy = tiny_policy(form=LoraForm(type="lora", rank=4), tokenizer=tokenizer)
    names = set(policy.trained())
    assert names
    assert all("lora_" in name or name.startswith("value_head.") for name in names)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_saved_full_policy_loads_in_plain_transformers_with_equal_logits(
    family: str, tmp_path: Path, rows: TokenBatch, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = tiny_policy(family=family, tokenizer=tokenizer)
    shake(policy)
    policy.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        theirs = plain(input_ids=lay_out(rows)).logits
        ours = policy.model(input_ids=lay_out(rows)).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token_id == tokenizer.pad_token_id
    again = load_policy(str(tmp_path / "model"))
    with torch.no_grad():
        torch.testing.assert_close(again.evaluate(rows).values_BR, policy.evaluate(rows).values_BR, atol=1e-5, rtol=0)


def test_saved_adapter_loads_in_plain_transformers_with_equal_logits(
    tmp_path: Path, rows: TokenBatch, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    policy = load_policy(str(base), form=LoraForm(type="lora", rank=4))
    shake(policy)
    policy.save(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = plain(input_ids=lay_out(rows)).logits
        ours = policy.model(input_ids=lay_out(rows)).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_chunks_of_the_head_change_neither_logprobs_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, rows: TokenBatch, tokenizer: Any
) -> None:
    from hydralign.models.kernels import logprobs

    policy = tiny_policy(tokenizer=tokenizer)
    shake(policy)
    whole = gradients(policy, rows, [0, 1, 2, 3], 4)
    defaults = logprobs.token_logprobs.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "chunk_rows", 3)
    chunked = gradients(policy, rows, [0, 1, 2, 3], 4)
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, atol=1e-3, rtol=1e-4)


def test_logits_of_prompt_positions_never_exist(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = TokenHead.block

    def counted(head: TokenHead, states: torch.Tensor, tokens: range) -> torch.Tensor:
        seen.append(len(states))
        return whole(head, states, tokens)

    monkeypatch.setattr(TokenHead, "block", counted)
    rows = TokenBatch.of([list(range(5, 45)), [5, 6]], [[7, 8], [9]])
    with torch.no_grad():
        policy.evaluate(rows)
    assert sum(seen) == 3


def test_pad_equal_to_eos_keeps_the_eos_in_the_mask(tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    policy = make_policy(tiny_model(tokenizer), tokenizer)
    eos = tokenizer.eos_token_id
    rows = TokenBatch.of([[5, 6], [7]], [[8, eos], [9, 10, eos]], pad_id=eos)
    evaluation = policy.evaluate(rows)
    assert rows.mask_BR.sum(-1).tolist() == [2, 3]
    evaluation.logprobs_BR[0, 1].backward()
    head_gradient = policy.model.transformer.wte.weight.grad[eos]
    assert head_gradient.abs().max() > 0


@pytest.mark.parametrize(("targets", "widest"), [(None, 32), (("c_attn",), 32), (("nowhere",), 32)])
def test_rank_above_every_adapted_matrix_is_refused(targets: tuple[str, ...] | None, widest: int) -> None:
    model = tiny_model(tiny_tokenizer())
    assert model.config.hidden_size == widest
    require_rank_fits(model, widest, targets)
    with pytest.raises(ModelError, match=rf"model\.form\.rank={widest + 1}: no adapted matrix .* above {widest}, "):
        require_rank_fits(model, widest + 1, targets)


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_model_may_have_the_model_of_any_form_as_its_reference(
    form: str, tokenizer: Any, rows: TokenBatch
) -> None:
    other = tiny_policy(form=FORMS[form], tokenizer=tokenizer)
    shake(other)
    frozen = make_frozen_policy(tiny_model(tokenizer), tokenizer, reference=other)
    with torch.no_grad():
        wanted_BR = other.evaluate(rows).logprobs_BR
    torch.testing.assert_close(frozen.reference_logprobs(rows), wanted_BR, atol=1e-5, rtol=0)
    assert not frozen.trained()


def test_a_policy_without_critic_or_reference_says_so(tokenizer: Any, rows: TokenBatch) -> None:
    policy = make_supervised_policy(tiny_model(tokenizer), tokenizer)
    assert policy.evaluate(rows).values_BR is None
    with pytest.raises(ModelError, match="no critic"):
        policy.read_values(rows)
    with pytest.raises(ModelError, match="no reference"):
        policy.reference_logprobs(rows)
    with pytest.raises(ConfigError, match="never be trained"):
        make_policy(tiny_model(tokenizer), tokenizer, form=FORMS["hydra-values"], critic=False)
