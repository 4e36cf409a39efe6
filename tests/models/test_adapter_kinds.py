"""Adapters of every kind that PEFT writes: trained on, with their start as reference, saved, merged, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.models import load_policy
from hydralign.models.backbones.trunk import lay_out
from hydralign.models.folders.merged import adapter_config_of, base_path_of, load_merged
from hydralign.models.forms.build import load_supervised_policy
from hydralign.runs.inputs import _files
from hydralign.testing import tiny_model
from hydralign.types import TokenBatch
from tests.conftest import shake

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Merging .*:UserWarning"),
]
Make = Callable[..., Any]
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "plain": (LoraConfig, {}),
    "bias-all": (LoraConfig, {"bias": "all"}),
    "bias-lora-only": (LoraConfig, {"bias": "lora_only"}),
    "dora": (LoraConfig, {"use_dora": True}),
    "rslora": (LoraConfig, {"use_rslora": True}),
    "ranks": (LoraConfig, {"rank_pattern": {"h.1.attn.c_attn": 3}, "alpha_pattern": {"h.0.attn.c_attn": 8}}),
    "pissa": (LoraConfig, {"init_lora_weights": "pissa"}),
    "head": (LoraConfig, {"modules_to_save": ["lm_head"]}),
    "norm": (LoraConfig, {"modules_to_save": ["ln_f"]}),
    "embeddings": (LoraConfig, {"modules_to_save": ["wte", "wpe"]}),
    "tokens": (LoraConfig, {"trainable_token_indices": {"wte": [3, 20, 21]}}),
    "ia3": (IA3Config, {"feedforward_modules": []}),
}


def adapter(folder: Path, tokenizer: Any, kind: str, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """(base, adapter): a tiny gpt2 whose output head is its own, and an adapter that changes what it says."""
    base = tiny_model(tokenizer)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach() * 0.9)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    make, settings = KINDS[kind]
    given = {**LORA, "fan_in_fan_out": True, **settings}
    if make is IA3Config:
        del given["r"], given["lora_alpha"]
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), make(**given))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if "pissa" in kind:
        # A base of its own, as after training: PEFT takes the principal part out of the base again when it loads.
        peft.peft_config["default"].init_lora_weights = "pissa"
    peft.save_pretrained(folder / "adapter", save_embedding_layers=False)
    file = folder / "adapter/adapter_model.safetensors"
    save_file({name: x.to(dtype) for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
    return str(folder / "base"), str(folder / "adapter")


def plain_logits(base: str, folder: str, rows: TokenBatch) -> torch.Tensor:
    """What PEFT by itself makes of base and adapter."""
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return peft(input_ids=lay_out(rows)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_is_its_own_reference_and_saves_what_it_became(
    kind: str, tmp_path: Path, tokenizer: Any, rows: TokenBatch
) -> None:
    base, folder = adapter(tmp_path, tokenizer, kind)
    wanted = plain_logits(base, folder, rows)
    policy = load_policy(base, form=LoraForm(adapter=folder))
    with torch.no_grad():
        torch.testing.assert_close(policy.model(lay_out(rows)).logits, wanted, atol=1e-4, rtol=0)
        start_BR = policy.reference_logprobs(rows)
        torch.testing.assert_close(policy.evaluate(rows).logprobs_BR, start_BR, atol=1e-6, rtol=0)
        shake(policy)
        assert (policy.evaluate(rows).logprobs_BR - start_BR).abs().max() > 1e-2
        torch.testing.assert_close(policy.reference_logprobs(rows), start_BR, atol=1e-6, rtol=0)
        policy.save(tmp_path / "after")
        ours = policy.model(lay_out(rows)).logits
    torch.testing.assert_close(plain_logits(base, str(tmp_path / "after"), rows), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_adapter_merges_into_the_model_that_peft_makes_of_it(
    kind: str, tmp_path: Path, tokenizer: Any, rows: TokenBatch
) -> None:
    base, folder = adapter(tmp_path, tokenizer, kind)
    model, _ = load_merged(folder)
    with torch.no_grad():
        merged = model(input_ids=lay_out(rows)).logits
    torch.testing.assert_close(merged, plain_logits(base, folder, rows), atol=1e-4, rtol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["plain", "bias-all", "dora", "head", "norm", "embeddings", "tokens", "ia3"])
def test_what_an_adapter_trains_is_fp32_in_bf16_mode(
    kind: str, tmp_path: Path, tokenizer: Any, rows: TokenBatch
) -> None:
    base, folder = adapter(tmp_path, tokenizer, kind, torch.bfloat16)
    form = LoraForm(adapter=folder)
    policy = load_policy(base, form=form, precision="bf16")
    student = load_supervised_policy(base, form=form, precision="bf16")
    for trained in (policy.trained(), student.trained()):
        assert trained
        assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert torch.bfloat16 in {parameter.dtype for parameter in policy.frozen()}
    with torch.no_grad():
        start_BR = policy.reference_logprobs(rows)
        torch.testing.assert_close(policy.evaluate(rows).logprobs_BR, start_BR, atol=1e-4, rtol=0)
    policy.save(tmp_path / "after")
    saved = load_file(tmp_path / "after/adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("make", [PromptTuningConfig, PrefixTuningConfig])
def test_adapter_that_adds_inputs_is_refused_with_a_way_out(make: Any, tmp_path: Path, tokenizer: Any) -> None:
    base, folder = adapter(tmp_path, tokenizer, "plain")
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, make(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(folder)
    starts = (lambda: load_policy(base, form=LoraForm(adapter=folder)), lambda: load_merged(folder))
    for start in starts:
        with pytest.raises(ModelError, match=r"(PROMPT|PREFIX)_TUNING, which adds inputs .* Train a LoRA adapter"):
            start()


def test_base_that_cannot_be_a_folder_is_named(tmp_path: Path, tokenizer: Any) -> None:
    _, folder = adapter(tmp_path, tokenizer, "plain")
    file = Path(folder) / "adapter_config.json"
    settings = json.loads(file.read_text())
    for base in (5, "/" + "a" * 300, "a" * 300, "~nobody-of-this-name/model"):
        file.write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        with pytest.raises(
            ModelError,
            match=rf"base_model_name_or_path is 5|names {base!r} as its base model|Model folder {base!r} cannot",
        ):
            base_path_of(adapter_config_of(folder), folder)
        assert [name for name in _files(folder) if name.startswith("base/")] == []


def test_adapter_weights_without_a_place_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    base, folder = adapter(tmp_path, tokenizer, "plain")
    file = Path(folder) / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.score.weight": torch.zeros(1, 32)}, file)
    for start in (lambda: load_policy(base, form=LoraForm(adapter=folder)), lambda: load_merged(folder)):
        with pytest.raises(ModelError, match=r"no place \(first: base_model.model.score.weight"):
            start()
