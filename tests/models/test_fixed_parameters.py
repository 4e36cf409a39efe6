"""What is trained: never what an architecture declares fixed, always in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ModelError
from hydralign.models import load_policy, make_policy
from hydralign.models.classifiers.training import wrap_classifier
from hydralign.models.fixed import fixed_names
from hydralign.models.forms.build import make_supervised_policy
from hydralign.testing import tiny_model
from hydralign.training.optimizer import make_optimizer
from tests.conftest import FORMS
from tests.models.test_slicing import SIZES

ROUTED = {
    **SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "moe_intermediate_size": 16, "moe_num_experts": 4,
    "moe_k": 2, "moe_layer_start_index": 0,
}  # fmt: skip
FIXED = "e_score_correction_bias"


def routed_model() -> Any:
    """A tiny model with experts, whose router has a bias that its architecture declares fixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("ernie4_5_moe", **ROUTED))


@pytest.fixture
def routed(tmp_path: Path, tokenizer: Any) -> str:
    routed_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


FIXED_FORMS: dict[str, Form] = {
    "full": FullForm(),
    "hydra": HydraForm(unfrozen_layers=1, value="branch"),
    "lora": LoraForm(rank=2, targets=("q_proj",)),
}


@pytest.mark.parametrize("form", FIXED_FORMS)
def test_router_bias_that_is_declared_fixed_is_never_trained(form: str, routed: str) -> None:
    policy = load_policy(routed, form=FIXED_FORMS[form])
    assert policy.trained()
    assert not [name for name in policy.trained() if FIXED in name]


def test_weight_decay_leaves_what_is_declared_fixed(routed: str, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(routed)
    assert any(FIXED in name and p.requires_grad for name, p in model.named_parameters()), "transformers forgets it"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if FIXED in name:
                parameter.fill_(1.0)
    student = make_supervised_policy(model, tokenizer, form=FullForm())
    optimizer = make_optimizer(student.trained(), type="sgd", learning_rate=0.1, weight_decay=0.5)
    for parameter in student.trained().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    values = [p for name, p in model.named_parameters() if FIXED in name]
    assert values
    assert all(torch.equal(p, torch.ones_like(p)) for p in values)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapter_that_copies_a_whole_module_keeps_its_fixed_parameter(routed: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(routed), config).save_pretrained(tmp_path / "adapter")
    policy = load_policy(routed, form=LoraForm(adapter=str(tmp_path / "adapter")))
    assert [name for name in policy.trained() if "modules_to_save" in name]
    assert not [name for name in policy.trained() if FIXED in name]
    merged = load_policy(str(tmp_path / "adapter"))
    assert not [name for name in merged.trained() if FIXED in name]


def test_scorer_leaves_what_its_architecture_declares_fixed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydralign.models import fixed
    from hydralign.models.folders.from_scratch import make_classifier

    model = make_classifier(tokenizer, family="gpt2", layers=1, width=16, heads=2, context=32, labels=("score",))
    monkeypatch.setattr(fixed, "fixed_names", lambda _: frozenset({"transformer.wpe.weight"}))
    assert "transformer.wpe.weight" not in wrap_classifier(model, tokenizer).trained()


def test_nothing_is_fixed_in_most_architectures_and_what_is_is_found(tokenizer: Any) -> None:
    assert fixed_names(tiny_model(tokenizer)) == set()
    assert {name.rpartition(".")[2] for name in fixed_names(routed_model())} == {FIXED}


@pytest.mark.parametrize("form", FORMS)
def test_model_given_in_bf16_trains_in_fp32(form: str, tokenizer: Any) -> None:
    for precision in ("fp32", "bf16"):
        policy = make_policy(tiny_model(tokenizer).bfloat16(), tokenizer, form=FORMS[form], precision=precision)
        assert {p.dtype for p in policy.trained().values()} == {torch.float32}


def test_trained_weights_of_fewer_bits_are_refused_before_the_first_step() -> None:
    trained = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(2).half())}
    with pytest.raises(ModelError, match=r"1 of 2 trained parameters .*first: b, in float16"):
        make_optimizer(trained)
