"""Folders of the hydra form: what is written loads anywhere and goes on with equal numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ModelError
from hydralign.models import load_policy
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.forms.build import load_supervised_policy
from tests.conftest import shake
from tests.models.test_hydra import FORMS, collected, few_families, moved, new_policy
from tests.models.test_slicing import FAMILIES, new_model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exported_hydra_loads_in_plain_transformers_with_equal_logits(
    family: str, precision: str, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    policy = new_policy(family, "k2-values", tokenizer, precision=precision)
    ids_BT = torch.randint(2, 300, (2, 40), generator=torch.Generator().manual_seed(4))
    shake(policy)
    policy.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    with torch.no_grad():
        theirs = plain(input_ids=ids_BT).logits
        ours = policy.model.float()(input_ids=ids_BT).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    tied = bool(policy.model.config.tie_word_embeddings)
    assert sum(t.shape == (300, 32) for t in saved.values()) == (1 if tied else 2)


@pytest.mark.parametrize("form", ["k2-values", "k4"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_a_loaded_hydra_goes_on_with_the_same_values(family: str, form: str, tmp_path: Path, tokenizer: Any) -> None:
    policy = new_policy(family, form, tokenizer)
    rows = collected(policy).rollout.rows
    shake(policy)
    policy.save(tmp_path / "model")
    again = load_policy(str(tmp_path / "model"), form=FORMS[form])
    again.stop_ids = policy.stop_ids
    with torch.no_grad():
        for ours, theirs in zip(policy.evaluate(rows), again.evaluate(rows), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
        assert policy.evaluate(rows).values_BR.abs().max() > 1e-2
        assert torch.equal(again.reference_logprobs(rows), again.evaluate(rows).logprobs_BR)


def test_a_value_branch_of_other_layers_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    new_policy("gpt2", "k2-values", tokenizer).save(tmp_path / "model")
    with pytest.raises(ModelError, match="holds 26 weights, and the value branch of this form has 38") as error:
        load_policy(str(tmp_path / "model"), form=HydraForm(unfrozen_layers=3, value="branch"))
    assert "Use the unfrozen_layers that it was trained with" in str(error.value)


def saved_base(family: str, folder: Path, tokenizer: Any) -> str:
    new_model(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@few_families
def test_adapters_of_the_top_layers_alone_are_saved_and_gone_on_from(
    family: str, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    path, adapter = saved_base(family, tmp_path / "base", tokenizer), str(tmp_path / "adapter")
    form = LoraForm(rank=2, unfrozen_layers=2, targets=("c_attn",) if family == "gpt2" else None)
    policy: Any = load_policy(path, form=form)
    rows = collected(policy).rollout.rows
    bare_BR = policy.reference_logprobs(rows)
    shake(policy)
    policy.save(Path(adapter))
    layers = {name.split(".layers." if ".layers." in name else ".h.")[1][0] for name in adapter_weights(adapter)}
    assert layers == {"3", "4"}
    plain = AutoModelForCausalLM.from_pretrained(adapter).eval()
    with torch.no_grad():
        theirs = plain(input_ids=lay_out(rows)).logits
        torch.testing.assert_close(theirs, policy.model(input_ids=lay_out(rows)).logits, atol=1e-5, rtol=0)
        trained_BR, _, values_BR = policy.evaluate(rows)
    again = load_policy(path, form=LoraForm(adapter=adapter, unfrozen_layers=2))
    torch.testing.assert_close(again.reference_logprobs(rows), trained_BR, atol=1e-5, rtol=0)
    assert (trained_BR - bare_BR).abs().max() > 0.01
    start_BR = again.reference_logprobs(rows)
    with torch.no_grad():
        found = again.evaluate(rows)
        assert torch.equal(found.logprobs_BR, start_BR)
        torch.testing.assert_close(found.values_BR, values_BR, atol=1e-5, rtol=0)
        shake(again)
        assert not torch.equal(again.evaluate(rows).logprobs_BR, start_BR)
    assert torch.equal(again.reference_logprobs(rows), start_BR)


def adapter_weights(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


@pytest.mark.parametrize("below", [None, 3])
def test_an_adapter_that_changes_the_trunk_is_refused(below: int | None, tmp_path: Path, tokenizer: Any) -> None:
    path, adapter = saved_base("llama", tmp_path / "base", tokenizer), str(tmp_path / "adapter")
    load_policy(path, form=LoraForm(rank=2, unfrozen_layers=below)).save(Path(adapter))
    for load in (load_policy, load_supervised_policy):
        with pytest.raises(ModelError, match="the adapter changes .*layers.*, which is not in the top 2 lay") as error:
            load(path, form=LoraForm(adapter=adapter, unfrozen_layers=2))
        assert "Leave unfrozen_layers out" in str(error.value)
        load(path, form=LoraForm(adapter=adapter, unfrozen_layers=below))


def test_a_value_branch_file_that_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any) -> None:
    new_policy("gpt2", "k2-values", tokenizer).save(tmp_path / "model")
    (tmp_path / "model" / "value_branch.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="value_branch.safetensors cannot be read"):
        load_policy(str(tmp_path / "model"), form=FORMS["k2-values"])


@pytest.mark.parametrize("form", [FullForm(), HydraForm(unfrozen_layers=2), LoraForm(rank=2)])
def test_values_of_a_branch_are_not_read_by_a_form_without_one(form: Form, tmp_path: Path, tokenizer: Any) -> None:
    new_policy("gpt2", "k2-values", tokenizer).save(tmp_path / "model")
    with pytest.raises(ModelError, match="this form has none: its values would mean nothing"):
        load_policy(str(tmp_path / "model"), form=form)


def test_a_hydra_folder_is_an_ordinary_start_for_full_training(tmp_path: Path) -> None:
    policy, rows = moved("llama", "k4")
    policy.save(tmp_path / "model")
    full = load_policy(str(tmp_path / "model"), form=FullForm())
    full.stop_ids = policy.stop_ids
    with torch.no_grad():
        ours_BR = policy.evaluate(rows).logprobs_BR
        torch.testing.assert_close(full.evaluate(rows).logprobs_BR, ours_BR, atol=1e-5, rtol=0)
