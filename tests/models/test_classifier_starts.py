"""What scorers start from: trunks come whole or not at all, heads are kept under their own names or new."""

from __future__ import annotations

import json
from collections.abc import Callable
from logging import Handler
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification, MambaConfig, MambaForCausalLM
from transformers.utils import logging

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.models import make_policy
from hydralign.models.classifiers import starting
from hydralign.models.classifiers.training import load_sequence_classifier, wrap_classifier
from hydralign.models.folders import merged as whole
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.folders.loading import load_model
from hydralign.models.folders.merged import load_merged
from hydralign.testing import tiny_model, tiny_tokenizer

ROWS = [(5, 6, 7, 8, 0), (9, 10), (11, 12, 13, 0)]
SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32}


@pytest.fixture
def save(tmp_path: Path, tokenizer: Any) -> Callable[..., str]:
    """Saves a model with the tiny tokenizer and returns its folder."""

    def saved(model: Any, name: str = "model", **changes: Any) -> str:
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return str(tmp_path / name)

    return saved


def change_weights(folder: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = Path(folder) / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def bert_config(**changes: Any) -> BertConfig:
    return BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **changes
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_model_gives_its_trunk_and_gets_a_seeded_head(
    family: str, tokenizer: Any, save: Callable[..., str]
) -> None:
    model = tiny_model(tokenizer, family=family)
    folder = save(model)
    torch.manual_seed(5)
    first, second, other = (load_sequence_classifier(folder, labels=("score",), seed=seed) for seed in (1, 1, 2))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    trunk, got = model.base_model.state_dict(), first.model.base_model.state_dict()
    assert all(torch.equal(trunk[name], got[name]) for name in trunk)
    assert torch.equal(first.model.score.weight, second.model.score.weight)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    assert 0 < first.model.score.weight.std() < 0.05
    assert first.labels == ("score",)
    assert {p.dtype for p in first.trained().values()} == {torch.float32}
    assert first.model.config._attn_implementation == "sdpa"


def test_new_head_is_no_cause_for_a_warning(tokenizer: Any, save: Callable[..., str]) -> None:
    told: list[str] = []
    listener = Handler()
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.add_handler(listener)
    try:
        load_sequence_classifier(save(tiny_model(tokenizer)), labels=("score",))
    finally:
        logging.remove_handler(listener)
    assert told == []
    assert logging.get_verbosity() == logging.WARNING


def test_masked_language_model_gets_a_new_pooler_too(save: Callable[..., str]) -> None:
    model = BertForMaskedLM(bert_config(pad_token_id=1))
    first, second = (load_sequence_classifier(save(model), labels=("bad", "good"), seed=3) for _ in range(2))
    assert first.labels == ("bad", "good")
    assert torch.equal(first.model.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
    assert torch.equal(first.model.bert.pooler.dense.weight, second.model.bert.pooler.dense.weight)
    frozen = load_sequence_classifier(save(model), labels=("bad", "good"), freeze_layers=2)
    assert [name.split(".")[-3] for name in frozen.trained() if "pooler" in name] == ["pooler", "pooler"]


def test_classifier_keeps_its_head_in_the_order_that_is_asked_for(tokenizer: Any, save: Callable[..., str]) -> None:
    model = make_classifier(tokenizer, family="bert", **SIZES, labels=["bad", "so-so", "good"])
    torch.nn.init.normal_(model.classifier.bias, generator=torch.Generator().manual_seed(0))
    want = wrap_classifier(model, tokenizer).outputs(ROWS)
    folder = save(model)
    same, turned = (
        load_sequence_classifier(folder, labels=labels)
        for labels in (("bad", "so-so", "good"), ("good", "bad", "so-so"))
    )
    assert torch.equal(same.outputs(ROWS), want)
    assert turned.labels == ("good", "bad", "so-so")
    assert turned.model.config.label2id == {"good": 0, "bad": 1, "so-so": 2}
    assert torch.allclose(turned.outputs(ROWS), want[:, [2, 0, 1]], atol=1e-6)


def test_reward_model_without_a_name_for_its_output_is_gone_on_with(tokenizer: Any, save: Callable[..., str]) -> None:
    model = make_classifier(tokenizer, family="gpt2", **SIZES, labels=["LABEL_0"])
    scorer = load_sequence_classifier(save(model), labels=("score",), seed=9)
    assert scorer.labels == ("score",)
    assert torch.equal(scorer.model.score.weight, model.score.weight)


@pytest.mark.parametrize(("own", "wanted"), [(["bad", "good"], ("bad", "fine")), (["toxic"], ("score",))])
def test_other_labels_than_the_folder_has_are_refused_with_a_list(
    own: list[str], wanted: tuple[str, ...], tokenizer: Any, save: Callable[..., str]
) -> None:
    folder = save(make_classifier(tokenizer, family="gpt2", **SIZES, labels=own))
    listed = ", ".join(map(repr, own))
    with pytest.raises(ModelError, match=f"with the labels {listed}, and .*{wanted[-1]!r} are to be learned"):
        load_sequence_classifier(folder, labels=wanted)


def test_trunk_that_is_not_whole_is_refused(tokenizer: Any, save: Callable[..., str]) -> None:
    folder = save(tiny_model(tokenizer))
    change_weights(folder, lambda weights: {n: w for n, w in weights.items() if "h.1.mlp.c_fc" not in n})
    with pytest.raises(ModelError, match=r"lacks the weights transformer\.h\.1\.mlp\.c_fc\.bias, .*: they would be"):
        load_sequence_classifier(folder, labels=("score",))


def test_classifier_that_lost_its_head_is_refused(tokenizer: Any, save: Callable[..., str]) -> None:
    folder = save(make_classifier(tokenizer, family="gpt2", **SIZES, labels=["score"]))
    change_weights(folder, lambda weights: {n: w for n, w in weights.items() if "score" not in n})
    with pytest.raises(ModelError, match=r"lacks the weights score\.weight"):
        load_sequence_classifier(folder, labels=("score",))


def test_head_of_another_task_is_not_taken_for_one_of_texts(save: Callable[..., str]) -> None:
    folder = save(BertForTokenClassification(bert_config(pad_token_id=1, num_labels=2)))
    with pytest.raises(ModelError, match=r"brings its own classifier\.bias, classifier\.weight"):
        load_sequence_classifier(folder, labels=("bad", "good"))


def test_folder_without_weights_or_at_all_is_refused(tokenizer: Any, save: Callable[..., str]) -> None:
    folder = save(tiny_model(tokenizer))
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model.safetensors"):
        load_sequence_classifier(folder, labels=("score",))
    with pytest.raises(ModelError, match="does not exist"):
        load_sequence_classifier(folder + "/nowhere", labels=("score",))


def test_architecture_without_a_classifier_is_refused(save: Callable[..., str]) -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="type 'mamba': transformers has no classifier of it"):
        load_sequence_classifier(save(model), labels=("score",))


def test_encoder_decoder_is_refused(save: Callable[..., str]) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="type 't5': .* Use a causal language model or an encoder"):
        load_sequence_classifier(save(T5ForConditionalGeneration(config)), labels=("score",))


def test_unreadable_config_is_refused(tokenizer: Any, save: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match="could not be loaded: .*made_up"):
        load_sequence_classifier(save(tiny_model(tokenizer), model_type="made_up"), labels=("score",))


def adapter_on(folder: str, where: Path) -> Any:
    """A trained adapter on the folder's model, saved; returns its policy's model, adapter inside."""
    model, tokenizer = load_model(folder)
    model.name_or_path = model.config.name_or_path = folder
    policy = make_policy(model, tokenizer, form=LoraForm(rank=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    policy.save(where)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapter_is_merged_into_the_base_that_it_names(
    family: str, tokenizer: Any, save: Callable[..., str], tmp_path: Path
) -> None:
    folder = save(tiny_model(tokenizer, family=family))
    adapted = adapter_on(folder, tmp_path / "adapter")
    scorer = load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",), seed=1)
    bare = load_sequence_classifier(folder, labels=("score",), seed=1)
    ids_1T = torch.tensor([ROWS[0]])
    with torch.no_grad():
        want_D = adapted.base_model(input_ids=ids_1T).last_hidden_state[0, -1]
        got, without = scorer.outputs([ROWS[0]])[0, 0], bare.outputs([ROWS[0]])[0, 0]
        assert got == pytest.approx((scorer.model.score.weight[0] @ want_D).item(), abs=1e-5)
    assert torch.equal(scorer.model.score.weight, bare.model.score.weight)
    assert abs(got - without) > 1e-3
    assert not [name for name in scorer.trained() if "lora" in name]


def test_adapter_whose_base_is_elsewhere_is_refused(tokenizer: Any, save: Callable[..., str], tmp_path: Path) -> None:
    adapter_on(save(tiny_model(tokenizer)), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for base in ("/gone/model", "a/deeper/model", None):
        file.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(ModelError, match=f"names {base!r} as its base model, which is no folder"):
            load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",))


@pytest.mark.parametrize("base", ["some/model", "gpt2"])
def test_adapter_whose_base_is_on_the_hub_is_merged_into_it(
    base: str, tokenizer: Any, save: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tiny_model(tokenizer))
    adapter_on(folder, tmp_path / "adapter")
    want = load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",)).outputs(ROWS)
    want_weight = load_merged(str(tmp_path / "adapter"))[0].transformer.h[0].attn.c_attn.weight
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    load_start = starting._load
    monkeypatch.setattr(starting, "_load", lambda name, **a: load_start({base: folder}[name], **a))
    monkeypatch.setattr(whole, "load_model", lambda name, **a: load_model({base: folder}[name], **a))
    assert torch.equal(load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",)).outputs(ROWS), want)
    assert torch.equal(load_merged(str(tmp_path / "adapter"))[0].transformer.h[0].attn.c_attn.weight, want_weight)


def test_adapter_of_another_model_or_kind_is_refused(tokenizer: Any, save: Callable[..., str], tmp_path: Path) -> None:
    adapter_on(save(tiny_model(tokenizer)), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for name, other in (("wide", tiny_model(tokenizer, width=64)), ("llama", tiny_model(tokenizer, family="llama"))):
        file.write_text(json.dumps(config | {"base_model_name_or_path": save(other, name)}))
        with pytest.raises(ModelError, match="does not fit the base model"):
            load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",))
    file.write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ModelError, match="adapter of type .*LORA for SEQ_CLS"):
        load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",))


def test_deeper_base_than_the_adapter_was_trained_on_is_refused(
    tokenizer: Any, save: Callable[..., str], tmp_path: Path
) -> None:
    adapter_on(save(tiny_model(tokenizer)), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    deeper = save(tiny_model(tiny_tokenizer(), layers=3), "deeper")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": deeper}))
    with pytest.raises(ModelError, match="missing adapter keys"):
        load_sequence_classifier(str(tmp_path / "adapter"), labels=("score",))
