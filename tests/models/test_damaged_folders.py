"""Damaged or unsuitable model folders are refused by name: every load failure, NaN weights, ids without a row."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import MemoryLimitError, ModelError
from hydralign.models import load_model, load_policy, make_policy
from hydralign.models.classifiers.loading import load_classifier
from hydralign.models.classifiers.starting import load_start
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.folders.load_errors import named_load_errors
from hydralign.models.folders.merged import load_tokenizer
from hydralign.models.folders.weights import require_finite_weights
from hydralign.models.forms.build import make_frozen_policy
from hydralign.testing import tiny_model, tiny_tokenizer
from hydralign.training.optimizer import apply_gradients, make_optimizer
from tests.conftest import shake


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    tiny_model(tokenizer, family="llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


LOADERS: tuple[Callable[[str], Any], ...] = (
    load_model,
    lambda path: load_start(path, ("score",)),
    lambda path: load_classifier(path, "cpu"),
)


def refused(folder: Path, match: str) -> None:
    for load in LOADERS:
        with pytest.raises(ModelError, match=match):
            load(str(folder))


FILES = {
    "config list": ("config.json", "[]", "config.json could not be loaded: it holds a list"),
    "config null": ("config.json", "null", "config.json could not be loaded: it holds a NoneType"),
    "config empty": ("config.json", "", "config.json could not be loaded .JSONDecodeError"),
    "tokenizer": ("tokenizer.json", "5", "tokenizer.json could not be loaded: it holds a int"),
    "tokenizer config": ("tokenizer_config.json", "[]", "tokenizer_config.json could not be loaded: it holds a list"),
    "weights": ("model.safetensors", "torn", r"model.safetensors could .*SafetensorError.*damaged"),
    "index": ("model.safetensors.index.json", "{}", "has no weight_map"),
    "shard": ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "lacks gone.safetensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_damaged_file_is_named(case: str, folder: Path) -> None:
    file, content, match = FILES[case]
    (folder / file).write_text(content, encoding="utf-8")
    refused(folder, match)


SETTINGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"hidden_size": "many"}, "hidden_size='many'"),
    ({"hidden_size": None}, "hidden_size=None"),
    ({"num_attention_heads": 0}, "num_attention_heads=0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
    ({"rope_scaling": "garbage"}, "rope_parameters"),
    ({"hidden_act": "nope"}, "KeyError: 'nope'"),
    ({"dtype": "nope"}, "no attribute 'nope'"),
    ({"id2label": [1]}, "id2label|'list' object has no attribute 'items'"),
    ({"model_type": None}, "has model_type=None"),
    ({"model_type": 5}, "has model_type=5"),
    ({"model_type": "own", "auto_map": {"AutoConfig": "m.C"}}, "is code in its own folder"),
    ({"attn_implementation": "flash_attention_2"}, "ImportError: FlashAttention2"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\).*the unquantised model"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, r"is quantised \(mxfp4\)"),
    ({"quantization_config": 5}, "is quantised"),
    ({"quantization_config": {}}, "is quantised"),
    ({"quantization_config": []}, "is quantised"),
    ({"architectures": [3]}, r"architectures=\[3\]"),
    ({"max_position_embeddings": 0}, "config.json has max_position_embeddings=0"),
    ({"n_positions": -1}, "config.json has n_positions=-1"),
    ({"text_config": {"hidden_size": 0}}, "config.json has hidden_size=0"),
    ({"rms_norm_eps": float("nan")}, "config.json has rms_norm_eps=nan, which is no finite"),
    ({"rms_norm_eps": {"__float__": "NaN"}}, "config.json has rms_norm_eps=NaN, which is no finite"),
)


@pytest.mark.parametrize(("settings", "match"), SETTINGS, ids=[str(s)[:40] for s, _ in SETTINGS])
def test_config_that_no_model_can_be_made_of_is_named(settings: dict[str, Any], match: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    refused(folder, match)


def test_tokenizer_that_the_parser_refuses_is_named(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"BPE"', '"NEW"'), encoding="utf-8")
    refused(folder, "Exception: data did not match any variant")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model_max_length": "x"}, "has model_max_length='x' in its tokenizer_config.json"),
        ({"model_max_length": 0}, "has model_max_length=0 in its"),
        ({"tokenizer_class": "BertTokenizer"}, r"could not be loaded.*: Exception: WordPiece error: Missing \[UNK\]"),
    ],
)
def test_tokenizer_that_fails_at_its_first_text_is_named(settings: dict[str, Any], match: str, folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    for load in (*LOADERS[:2], load_tokenizer):
        with pytest.raises(ModelError, match=match):
            load(str(folder))


def test_sentencepiece_tokenizer_is_not_called_tiktoken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    refused(folder, "as a SentencePiece model")


def test_file_in_place_of_a_folder_and_gguf_weights_are_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(folder / "config.json"))
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(ModelError, match="found model.gguf"):
        load_model(str(folder))


def test_mistyped_folder_is_told_its_place_and_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ModelError, match=rf"looked at {folder}s\). Did you mean '{folder}'"):
        load_model(f"{folder}s")


def test_other_errors_than_load_failures_pass_untouched() -> None:
    for error in (MemoryError("full"), KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory.")):
        with pytest.raises(type(error)), named_load_errors("what", "way out"):
            raise error


def poison(file: Path, name: str) -> None:
    weights = load_file(file)
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def change_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Save the folder's weights again as `change(name, weight)`, without those where it gives None."""
    file = folder / "model.safetensors"
    changed = {name: change(name, weight) for name, weight in load_file(file).items()}
    save_file({name: w for name, w in changed.items() if w is not None}, file, metadata={"format": "pt"})


NARROW = {"I8": torch.int8, "I64": torch.int64, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn}


@pytest.mark.parametrize("kind", NARROW)
def test_weights_that_are_no_floats_are_refused_by_tensor_and_format(kind: str, folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda key, weight: weight.to(NARROW[kind]) if key == name else weight)
    refused(folder, rf"the weight {name} is stored as {kind}, .*unquantised model")
    shard = (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(shard), shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(folder, rf"a.safetensors: the weight {name} is stored as {kind}")


def test_half_floats_and_integer_buffers_are_read(folder: Path) -> None:
    change_weights(folder, lambda _, weight: weight.to(torch.float16))
    weights = load_file(folder / "model.safetensors")
    buffers = {"model.position_ids": torch.arange(4), "model.layers.0.attention.bias": torch.ones(4).bool()}
    save_file(weights | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(str(folder))
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32


def change_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")


def test_layers_that_the_config_leaves_out_are_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    for load in LOADERS[:2]:
        with pytest.raises(ModelError, match=r"holds 9 weights .*no place \(first: model.layers.1.input_layernorm.we"):
            load(str(folder))


def test_weights_outside_the_body_are_left_out_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / "model.safetensors")
    ignored = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "model.position_ids": torch.arange(4)}
    extra = {"v_head.summary.weight": torch.ones(1, 4)}
    for added in (ignored, ignored | extra):
        save_file(weights | added, folder / "model.safetensors", metadata={"format": "pt"})
        load_model(str(folder))
        told = "1 weights outside its body are left out (first: v_head" in capsys.readouterr().err
        assert told == ("v_head.summary.weight" in added)


def test_weight_of_another_size_is_named_with_both_shapes(folder: Path) -> None:
    match = r"embed_tokens.weight has the shape 300 x 32 in its file, and 290 x 32 by its config.json"
    change_config(folder, vocab_size=290)
    for load in LOADERS[:2]:
        with pytest.raises(ModelError, match=match):
            load(str(folder))
    change_config(folder, vocab_size=300)
    name = "model.norm.weight"
    change_weights(folder, lambda key, weight: weight[:7].clone() if key == name else weight)
    with pytest.raises(ModelError, match=rf"{name} has the shape 7 in its file, and 32 by"):
        load_model(str(folder))


def test_classifier_with_another_number_of_labels_is_named_with_both_shapes(tmp_path: Path, tokenizer: Any) -> None:
    make_classifier(
        tokenizer, family="gpt2", layers=1, width=16, heads=2, context=32, labels=("a", "b")
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change_config(tmp_path, id2label={str(i): str(i) for i in range(5)})
    with pytest.raises(ModelError, match=r"score.weight has the shape 2 x 16 in its file, and 5 x 16 by"):
        load_classifier(tmp_path, "cpu")


def test_nan_in_weights_is_named_with_its_tensor(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    poison(folder / "model.safetensors", name)
    for load in LOADERS[:2]:
        with pytest.raises(ModelError, match=f"1 of .* numbers in the weight {name} are NaN"):
            load(str(folder))


def test_nan_in_a_model_in_memory_is_not_blamed_on_the_architecture(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[2] = float("inf")
    with pytest.raises(ModelError, match=r"h.0.ln_1.weight are NaN or infinite"):
        make_policy(model, tokenizer)


def test_nan_in_a_buffer_that_is_saved_is_named_and_one_that_is_not_is_left_alone() -> None:
    model = torch.nn.Linear(2, 1)
    model.register_buffer("rebuilt", torch.tensor([float("-inf")]), persistent=False)
    require_finite_weights(model, "Model")
    model.register_buffer("router_bias", torch.tensor([0.0, float("nan")]))
    with pytest.raises(ModelError, match="Model: 1 of 2 numbers in the weight router_bias are NaN"):
        require_finite_weights(model, "Model")


@pytest.mark.parametrize("form", [FullForm(), HydraForm(unfrozen_layers=1), None])
def test_weights_too_large_for_fp32_are_not_blamed_on_the_architecture(form: Form | None, tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e30)
    with pytest.raises(ModelError, match=r"NaN or infinite, though .*too large for fp32, or a "):
        make_policy(model, tokenizer, form=form) if form else make_frozen_policy(model, tokenizer)


def test_nan_in_adapter_and_value_head_is_named_with_its_file(folder: Path) -> None:
    policy = load_policy(str(folder), form=LoraForm(rank=2))
    shake(policy)
    policy.save(folder.parent / "adapter")
    adapter = folder.parent / "adapter"
    poison(adapter / "value_head.safetensors", "weight")
    with pytest.raises(ModelError, match=r"value_head.safetensors: 1 of 32 numbers in the weight weight"):
        load_policy(str(folder), form=LoraForm(adapter=str(adapter)))
    first = next(iter(load_file(adapter / "adapter_model.safetensors")))
    poison(adapter / "adapter_model.safetensors", first)
    with pytest.raises(ModelError, match="adapter_model.safetensors: 1 of"):
        load_policy(str(adapter))


def test_ids_without_an_embedding_row_are_refused_unless_nothing_writes_them(folder: Path) -> None:
    larger = tiny_tokenizer()
    larger.add_special_tokens({"additional_special_tokens": ["<image>"]})
    larger.save_pretrained(folder)
    load_model(str(folder))
    larger.add_tokens(["<user>", "<bot>"])
    larger.save_pretrained(folder)
    for load in LOADERS[:2]:
        with pytest.raises(ModelError, match=r"2 ids .*id 301, token '<user>'; .* 303 tokens, the model 300 rows"):
            load(str(folder))


def test_pad_token_without_an_embedding_row_is_refused(folder: Path) -> None:
    larger = tiny_tokenizer()
    larger.add_special_tokens({"pad_token": "[NEW]"})
    larger.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"id 300, token '\[NEW\]'"):
        load_model(str(folder))


def test_saved_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path, tokenizer: Any) -> None:
    old = os.umask(0o027)
    try:
        make_policy(tiny_model(tokenizer), tokenizer).save(tmp_path / "model")
    finally:
        os.umask(old)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o640}


def test_memory_that_runs_out_in_an_optimizer_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = make_optimizer(trained)
    trained["w"].grad = torch.ones(3)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(optimizer, "step", full)
    with pytest.raises(MemoryLimitError, match="Out of memory in the optimizer's step"):
        apply_gradients(optimizer, trained, 1.0)
