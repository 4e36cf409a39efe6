"""Scorers: what they train, that company changes nothing, and that plain transformers reads what they export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from hydralign.config.model import Form, FullForm, LoraForm
from hydralign.errors import ModelError
from hydralign.models.classifiers.loading import load_classifier
from hydralign.models.classifiers.training import SequenceClassifier, wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.heads.score import outputs
from hydralign.rewards import RewardModel
from hydralign.rewards.reward_model import require_reward_model
from hydralign.testing import tiny_tokenizer
from tests.rewards.conftest import word_tokenizer

FAMILIES = ("gpt2", "llama", "bert")
FORMS: dict[str, Form] = {"full": FullForm(), "lora": LoraForm(rank=2)}
EOS = 0
ROWS = [(5, 6, 7, 8, EOS), (9, 10), (11, 12, 13, EOS)]
each_family = pytest.mark.parametrize("family", FAMILIES)


def classifier(tokenizer: Any, family: str, labels: tuple[str, ...] = ("score",), layers: int = 3) -> Any:
    """A classifier with weights so large that scores differ visibly."""
    model = make_classifier(tokenizer, family=family, layers=layers, width=16, heads=2, context=32, labels=labels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def scorer_of(
    family: str, labels: tuple[str, ...] = ("score",), tokenizer: Any = None, **options: Any
) -> SequenceClassifier:
    tokenizer = tokenizer or tiny_tokenizer()
    return wrap_classifier(classifier(tokenizer, family, labels), tokenizer, **options)


def learn(scorer: SequenceClassifier, rows: Any = ROWS, steps: int = 3) -> None:
    """A few updates that move every trained weight that the outputs depend on."""
    optimizer = torch.optim.AdamW(list(scorer.trained().values()), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (scorer.outputs(rows) * torch.arange(-1, len(rows) - 1)[:, None]).sum().backward()
        optimizer.step()


def gradients(scorer: SequenceClassifier, rows: Any, weights: list[float]) -> dict[str, Tensor]:
    scorer.model.zero_grad()
    (scorer.outputs(rows)[:, 0] * torch.tensor(weights)).sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in scorer.trained().items()}


PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
rows, folders = json.loads(sys.argv[1])
read = {}
for folder in folders:
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in rows]
        read[folder] = [model(**batch).logits.tolist(), alone, model.config.id2label, tokenizer.pad_token_id]
assert "hydralign" not in sys.modules
print(json.dumps(read))
"""


def test_plain_transformers_reads_every_export_alike(tmp_path: Path) -> None:
    cases: dict[str, tuple[SequenceClassifier, Tensor]] = {}
    for family in FAMILIES:
        for form in FORMS:
            for labels in (("score",), ("bad", "good")):
                tokenizer = word_tokenizer(brackets=False) if family == "llama" else tiny_tokenizer()
                tokenizer.pad_token = tokenizer.eos_token
                scorer = scorer_of(family, labels, tokenizer, form=FORMS[form])
                learn(scorer)
                folder = tmp_path / f"{family}-{form}-{len(labels)}"
                scorer.save(folder)
                cases[str(folder)] = (scorer, scorer.outputs(ROWS).detach())
    argument = json.dumps([ROWS, list(cases)])
    plain = subprocess.run([sys.executable, "-c", PLAIN, argument], capture_output=True, text=True, check=True).stdout
    read = json.loads(plain.splitlines()[-1])
    for name, (scorer, want_BC) in cases.items():
        batched, alone, labels, pad_id = read[name]
        assert torch.allclose(torch.tensor(batched), want_BC, rtol=0, atol=1e-5), name
        assert torch.allclose(torch.tensor(alone), want_BC, rtol=0, atol=1e-5), name
        assert tuple(labels.values()) == scorer.labels
        assert pad_id == scorer.pad_id != scorer.tokenizer.eos_token_id
        assert want_BC.std() > 0.01
        stored = load_file(Path(name) / "model.safetensors").keys()
        assert stored == {key.replace(".base_layer.", ".") for key in scorer.model.state_dict() if "lora" not in key}


@pytest.mark.parametrize("form", FORMS)
@each_family
def test_head_is_trained_in_full_and_export_changes_nothing(family: str, form: str, tmp_path: Path) -> None:
    scorer = scorer_of(family, form=FORMS[form])
    head = scorer.model.classifier if family == "bert" else scorer.model.score
    before = head.weight.detach().clone()
    learn(scorer)
    assert (head.weight - before).abs().min() > 1e-3
    assert any(p is head.weight for p in scorer.trained().values())
    want, names = scorer.outputs(ROWS), list(scorer.trained())
    scorer.save(tmp_path / "model")
    assert torch.equal(scorer.outputs(ROWS), want)
    assert list(scorer.trained()) == names
    learn(scorer)
    assert not torch.allclose(scorer.outputs(ROWS), want, atol=1e-3)


@each_family
def test_padding_company_and_order_change_no_output(family: str) -> None:
    scorer = scorer_of(family, ("bad", "good"))
    together = scorer.outputs(ROWS)
    alone = torch.cat([scorer.outputs([row]) for row in ROWS])
    turned = scorer.outputs([*ROWS[::-1], tuple(range(5, 25))])[:3].flip(0)
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)
    assert torch.allclose(together, turned, rtol=0, atol=1e-5)
    assert together.std() > 0.01


@pytest.mark.parametrize("form", FORMS)
@each_family
def test_padding_company_and_order_change_no_gradient(family: str, form: str) -> None:
    scorer = scorer_of(family, form=FORMS[form])
    learn(scorer, steps=1)
    together = gradients(scorer, [*ROWS, tuple(range(5, 25))], [0.1, -0.2, 0.05, 0.0])
    alone = [gradients(scorer, [row], [weight]) for row, weight in zip(ROWS, (0.1, -0.2, 0.05), strict=True)]
    turned = gradients(scorer, ROWS[::-1], [0.05, -0.2, 0.1])
    for name, gradient in together.items():
        summed = torch.stack([one[name] for one in alone]).sum(dim=0)
        assert torch.allclose(gradient, summed, rtol=0, atol=1e-5), name
        assert torch.allclose(gradient, turned[name], rtol=0, atol=1e-5), name
    assert max(gradient.abs().max().item() for gradient in together.values()) > 0.01


@each_family
def test_pad_token_never_influences_an_output(family: str) -> None:
    scorer = scorer_of(family)
    before = scorer.outputs(ROWS)
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight[scorer.pad_id] = 1000.0
    assert torch.allclose(scorer.outputs(ROWS), before, rtol=0, atol=1e-5)


def test_pad_that_is_eos_gives_way_to_a_pad_token_that_exists() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    scorer = scorer_of("gpt2", tokenizer=tokenizer)
    assert (scorer.pad_id, tokenizer.pad_token) == (1, "<pad>")
    assert scorer.model.get_input_embeddings().weight.shape[0] == 300


@pytest.mark.parametrize("named", [None, "<eos>", "[UNK]"])
def test_pad_that_can_end_a_text_gives_way_to_a_new_token_with_the_mean_embedding(named: str | None) -> None:
    tokenizer = word_tokenizer(brackets=False)
    tokenizer.pad_token = None
    model = classifier(tokenizer, "llama")
    mean = model.get_input_embeddings().weight.mean(dim=0)
    scorer = wrap_classifier(model, tokenizer, pad_token=named)
    assert (scorer.pad_id, tokenizer.pad_token) == (14, "<pad>")
    assert torch.allclose(model.get_input_embeddings().weight[14], mean)
    assert model.config.vocab_size == 15


def test_named_pad_token_is_kept_when_it_ends_no_text() -> None:
    tokenizer = word_tokenizer(brackets=False)
    tokenizer.pad_token = None
    assert scorer_of("gpt2", tokenizer=tokenizer, pad_token="[CLS]").pad_id == 2


def test_eos_is_learned_by_a_model_that_padded_with_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = classifier(tokenizer, "llama")
    model.get_input_embeddings().padding_idx = EOS  # as transformers sets it when the model is made
    scorer = wrap_classifier(model, tokenizer)
    scorer.outputs([(5, EOS)]).sum().backward()
    assert model.get_input_embeddings().weight.grad[EOS].abs().sum() > 0


EMBEDDINGS = {"gpt2": 300 * 16 + 32 * 16, "llama": 300 * 16, "bert": 300 * 16 + 32 * 16 + 2 * 16 + 2 * 16}
BLOCK = {"gpt2": 12 * 16**2 + 13 * 16, "llama": 4 * 16**2 + 3 * 16 * 48 + 2 * 16, "bert": 12 * 16**2 + 13 * 16}
TOP = {"gpt2": 2 * 16 + 16, "llama": 16 + 16, "bert": 16**2 + 16 + 16 + 1}


@pytest.mark.parametrize("layers", [0, 1, 3])
@each_family
def test_freeze_layers_fixes_embeddings_and_blocks_from_below(family: str, layers: int) -> None:
    scorer = scorer_of(family, freeze_layers=layers)
    trained = sum(p.numel() for p in scorer.trained().values())
    assert trained == TOP[family] + (3 - layers) * BLOCK[family] + (EMBEDDINGS[family] if layers == 0 else 0)
    fixed = sum(p.numel() for p in scorer.frozen())
    assert fixed == (EMBEDDINGS[family] + layers * BLOCK[family] if layers else 0)
    before = [p.clone() for p in scorer.frozen()]
    learn(scorer)
    assert all(torch.equal(p, q) for p, q in zip(scorer.frozen(), before, strict=True))


@pytest.mark.parametrize("layers", [4, -1])
def test_freezing_blocks_that_are_not_there_is_refused(layers: int) -> None:
    with pytest.raises(ModelError, match=f"freeze_layers={layers}, but GPT2ForSequenceClassification has 3 blocks"):
        scorer_of("gpt2", freeze_layers=layers)


@each_family
def test_fresh_adapters_change_nothing_and_are_seeded(family: str) -> None:
    plain = scorer_of(family).outputs(ROWS)
    first, second, other = (scorer_of(family, form=LoraForm(rank=2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.outputs(ROWS), plain)
    named = [{name: p for name, p in one.trained().items() if "lora_A" in name} for one in (first, second, other)]
    assert all(torch.equal(p, named[1][name]) for name, p in named[0].items())
    assert not any(torch.equal(p, named[2][name]) for name, p in named[0].items())


@pytest.mark.parametrize("targets", [None, ("c_attn", "score")])
def test_adapters_stand_above_the_frozen_blocks_and_beside_the_head(targets: tuple[str, ...] | None) -> None:
    scorer = scorer_of("gpt2", form=LoraForm(rank=2, targets=targets), freeze_layers=1)
    blocks = {name.split(".")[2] for name in scorer.trained() if "lora" in name}
    assert blocks == {"1", "2"}
    assert [name for name in scorer.trained() if "lora" not in name] == ["score.weight"]
    assert sum(p.numel() for p in scorer.trained().values()) == 2 * 2 * (16 + 48) + 16


@each_family
@pytest.mark.parametrize(("unfrozen", "freeze", "adapted"), [(1, 0, "2"), (2, 0, "12"), (2, 2, "2"), (3, 1, "12")])
def test_adapters_stand_in_the_top_layers_that_the_form_names(
    family: str, unfrozen: int, freeze: int, adapted: str
) -> None:
    scorer = scorer_of(family, form=LoraForm(rank=2, unfrozen_layers=unfrozen), freeze_layers=freeze)
    layers = {found[0] for name in scorer.trained() if "lora" in name and (found := re.findall(r"\.(\d)\.", name))}
    assert layers == set(adapted)
    assert any("lora" not in name for name in scorer.trained())


def test_more_top_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ModelError, match="unfrozen_layers=4, but GPT2ForSequenceClassification has 3 layers"):
        scorer_of("gpt2", form=LoraForm(rank=2, unfrozen_layers=4))


def test_adapters_without_a_place_are_refused() -> None:
    with pytest.raises(ModelError, match="no adapter could be placed above 0 frozen .* c_attn"):
        scorer_of("gpt2", form=LoraForm(targets=("nowhere",)))
    with pytest.raises(ModelError, match="above 3 frozen blocks .* Freeze fewer"):
        scorer_of("gpt2", form=LoraForm(), freeze_layers=3)


def test_adapter_under_the_form_is_refused() -> None:
    with pytest.raises(ModelError, match=r"adapter='sft': .* Name it under model\.path"):
        scorer_of("gpt2", form=LoraForm(adapter="sft"))


@pytest.mark.parametrize("temperature", [2.5, 0.3])
@each_family
def test_divided_outputs_are_those_before_over_the_temperature(family: str, temperature: float, tmp_path: Path) -> None:
    scorer = scorer_of(family, ("bad", "good"), form=LoraForm(rank=2))
    learn(scorer)
    for parameter in (scorer.model.classifier if family == "bert" else scorer.model.score).parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    want = scorer.outputs(ROWS).detach() / temperature
    scorer.divide_outputs(temperature)
    assert torch.allclose(scorer.outputs(ROWS), want, rtol=1e-6, atol=3e-6)
    scorer.save(tmp_path / "model")
    model, _, _ = load_classifier(tmp_path / "model", "cpu")
    assert torch.allclose(outputs(model, ROWS, scorer.pad_id), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_dividing_by_no_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ModelError, match="is not positive and finite"):
        scorer_of("gpt2").divide_outputs(temperature)


@each_family
def test_export_of_one_output_is_a_reward_model(family: str, tmp_path: Path) -> None:
    scorer = scorer_of(family, form=LoraForm(rank=2))
    learn(scorer)
    scorer.save(tmp_path / "model")
    model, tokenizer, raw = load_classifier(tmp_path / "model", "cpu")
    assert require_reward_model(model, tokenizer) == scorer.pad_id == raw["pad_token_id"]
    assert (raw["id2label"], raw["dtype"]) == ({"0": "score"}, "float32")
    text = "a small text of"
    row = (*tokenizer(text)["input_ids"], EOS)
    got = RewardModel.from_folder(tmp_path / "model")(["a small"], [" text of"], [True])
    assert got == pytest.approx([scorer.outputs([row]).item()], abs=1e-5)


@each_family
def test_bf16_stores_frozen_matrices_so_and_outputs_in_full_precision(family: str) -> None:
    want = scorer_of(family).outputs(ROWS)
    scorer = scorer_of(family, form=LoraForm(rank=2), precision="bf16")
    assert {p.dtype for p in scorer.trained().values()} == {torch.float32}
    stored = sum(p.numel() for p in scorer.frozen() if p.dtype == torch.bfloat16)
    norms = {"gpt2": 4 * 16, "llama": 2 * 16, "bert": 4 * 16}[family]
    assert stored == 3 * (BLOCK[family] - norms)
    got = scorer.outputs(ROWS)
    assert got.dtype == torch.float32
    assert torch.allclose(got, want, rtol=0, atol=0.1)
    assert not torch.equal(got, got.bfloat16().float()), "the head rounds"
    learn(scorer)
    frozen = scorer_of(family, precision="bf16", freeze_layers=2)
    assert sum(p.numel() for p in frozen.frozen() if p.dtype == torch.bfloat16) == 2 * (BLOCK[family] - norms)
    assert {p.dtype for p in frozen.trained().values()} == {torch.float32}


def test_bf16_adapters_merge_in_full_precision(tmp_path: Path) -> None:
    scorer = scorer_of("gpt2", form=LoraForm(rank=2), precision="bf16")
    learn(scorer)
    scorer.save(tmp_path / "model")
    model, _, raw = load_classifier(tmp_path / "model", "cpu")
    scorer.precision = "fp32"
    for parameter in scorer.model.parameters():
        parameter.data = parameter.data.float()
    assert raw["dtype"] == "float32"
    assert {weight.dtype for weight in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}
    assert torch.allclose(outputs(model, ROWS, scorer.pad_id), scorer.outputs(ROWS), rtol=0, atol=1e-5)


def test_longest_text_is_the_context_or_what_was_asked_for() -> None:
    assert scorer_of("gpt2").max_tokens == 32
    assert scorer_of("gpt2", max_tokens=8).max_tokens == 8
    with pytest.raises(ModelError, match="max_tokens=33, but GPT2ForSequenceClassification reads at most 32"):
        scorer_of("gpt2", max_tokens=33)


def test_architecture_that_reads_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    model = classifier(tokenizer, "gpt2")
    forward = type(model).forward

    def shifted(self: Any, input_ids: Tensor, **inputs: Any) -> Any:
        return forward(self, input_ids[:, :-1], **inputs)

    monkeypatch.setattr(type(model), "forward", shifted)
    with pytest.raises(ModelError, match="is read in a way that is not known here"):
        wrap_classifier(model, tokenizer)


def test_tokenizer_of_a_saved_classifier_pads_on_the_right(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    scorer_of("gpt2", tokenizer=tokenizer).save(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == "right"


WITH_EMBEDDINGS = {
    "gpt2": ("wte", "wpe", "c_attn"),
    "llama": ("embed_tokens", "q_proj"),
    "bert": ("word_embeddings", "query"),
}


@pytest.mark.parametrize("family", WITH_EMBEDDINGS)
@pytest.mark.parametrize("frozen", [{"freeze_layers": 1}, {"unfrozen_layers": 2}, {"unfrozen_layers": 3}, {}])
def test_adapters_on_embeddings_respect_what_is_frozen(family: str, frozen: dict[str, int]) -> None:
    top = {name: count for name, count in frozen.items() if name == "unfrozen_layers"}
    form = LoraForm(rank=2, targets=WITH_EMBEDDINGS[family], **top)  # type: ignore[arg-type]
    scorer = scorer_of(family, form=form, freeze_layers=frozen.get("freeze_layers", 0))
    adapted = {name for name in scorer.trained() if "lora_" in name}
    on_embeddings = {name for name in adapted if any(f".{target}." in name for target in WITH_EMBEDDINGS[family][:-1])}
    assert bool(on_embeddings) == (not frozen)
    assert adapted - on_embeddings
