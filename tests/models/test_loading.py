"""Model folders that cannot be trained from are refused by name, with a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ModelError, TokenizerError
from hydralign.files import whole_folder
from hydralign.models import load_model, load_policy, make_model, make_policy
from hydralign.models.classifiers.loading import load_classifier
from hydralign.models.classifiers.starting import load_start
from hydralign.models.folders.loading import stop_ids_of
from hydralign.models.folders.merged import adapter_config_of, load_merged, load_tokenizer
from hydralign.models.folders.saving import load_value_head, save_value_head
from hydralign.models.forms.build import load_supervised_policy
from hydralign.models.heads.value import ValueHead
from hydralign.models.policy import Policy
from hydralign.testing import tiny_model, tiny_tokenizer
from hydralign.types import TokenBatch
from tests.conftest import shake


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_load_model_gives_the_saved_weights(folder: Path, tokenizer: Any) -> None:
    model, loaded = load_model(str(folder))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_model(tokenizer)(ids).logits)
    assert loaded.eos_token == "<eos>"


def test_dropout_is_off_for_good(folder: Path) -> None:
    model, _ = load_model(str(folder))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        quiet = model(ids).logits
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        assert torch.equal(model(ids).logits, quiet)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(tmp_path / "nowhere"))


def test_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model.safetensors"):
        load_model(str(folder))


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pytorch_model.bin: pickled"):
        load_model(str(folder))


def test_tokenizer_without_pad_is_refused_until_one_is_named(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerError, match="no pad token"):
        load_model(str(folder))
    _, loaded = load_model(str(folder), pad_token="<eos>")
    assert loaded.pad_token_id == loaded.eos_token_id
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        load_model(str(folder), pad_token="[NEW]")


@pytest.fixture
def adapter(folder: Path) -> tuple[Path, Policy]:
    """An adapter that changes its base, in a folder, and the policy that wrote it."""
    policy = load_policy(str(folder), form=LoraForm(rank=2))
    shake(policy)
    policy.save(folder.parent / "adapter")
    return folder.parent / "adapter", policy


def test_adapter_folder_as_model_path_of_a_lora_form_is_refused(adapter: tuple[Path, Policy]) -> None:
    for form in (LoraForm(rank=2), LoraForm(rank=2, unfrozen_layers=1)):
        with pytest.raises(ModelError, match="is an adapter"):
            load_policy(str(adapter[0]), form=form)


@pytest.mark.parametrize(
    "form", [None, FullForm(), HydraForm(unfrozen_layers=1), HydraForm(unfrozen_layers=1, value="branch")]
)
def test_adapter_folder_is_merged_into_its_base_in_the_other_forms(
    form: Form | None, adapter: tuple[Path, Policy], folder: Path, rows: TokenBatch
) -> None:
    path, adapted = adapter
    policy = load_policy(str(path), form=form)
    with torch.no_grad():
        told, expected = policy.evaluate(rows), adapted.evaluate(rows)
    torch.testing.assert_close(told.logprobs_BR, expected.logprobs_BR, atol=1e-5, rtol=0)
    torch.testing.assert_close(told.values_BR, expected.values_BR, atol=1e-5, rtol=0)
    assert torch.equal(policy.reference_logprobs(rows), told.logprobs_BR)
    bare = load_policy(str(folder), form=form)
    assert (told.logprobs_BR - bare.evaluate(rows).logprobs_BR).abs().max() > 1e-3
    assert policy.trained().keys() == bare.trained().keys()
    policy.save(path.parent / "whole")
    assert not (path.parent / "whole" / "adapter_config.json").exists()
    with torch.no_grad():
        again = load_policy(str(path.parent / "whole"), form=form).evaluate(rows)
    assert torch.equal(again.logprobs_BR, told.logprobs_BR)


@pytest.mark.parametrize("target", ["lm_head", "wte"])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning", "ignore:fan_in_fan_out:UserWarning")
def test_adapter_on_one_side_of_tied_weights_is_not_merged(target: str, folder: Path) -> None:
    path = folder.parent / "adapter"
    load_policy(str(folder), form=LoraForm(rank=2, targets=(target,))).save(path)
    with pytest.raises(ModelError, match=f"adapts .*{target}, whose weight is tied"):
        load_policy(str(path))


def starts_with(adapter: Path, base: Path) -> dict[str, Callable[[], Any]]:
    """Every way to start a policy or a student from the adapter folder."""
    forms = {"lora": LoraForm(adapter=str(adapter)), "top": LoraForm(adapter=str(adapter), unfrozen_layers=1)}
    return {
        "merged": lambda: load_policy(str(adapter)),
        "tokenizer": lambda: load_tokenizer(str(adapter)),
        **{name: partial(load_policy, str(base), form=form) for name, form in forms.items()},
        **{f"student {name}": partial(load_supervised_policy, str(base), form=form) for name, form in forms.items()},
    }


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the hub was asked for a local folder's files")

    monkeypatch.setattr("peft.utils.save_and_load.file_exists", asked)
    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", asked)


@pytest.mark.usefixtures("offline")
def test_adapter_without_safetensors_is_refused_and_not_looked_for_elsewhere(
    adapter: tuple[Path, Policy], folder: Path
) -> None:
    path, _ = adapter
    weights = load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    for start in starts_with(path, folder).values():
        with pytest.raises(ModelError, match=r"has no (adapter_)?model\.safetensors"):
            start()
    torch.save(weights, path / "adapter_model.bin")
    for start in starts_with(path, folder).values():
        with pytest.raises(ModelError, match=r"found adapter_model\.bin: pickled weights can run code"):
            start()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("adapter_model.safetensors", "torn", "adapter_model.safetensors could not be loaded"),
        ("adapter_config.json", '{"peft_type": "LORA", ', "adapter_config.json cannot be read: JSONDecodeError: "),
        ("adapter_config.json", "[]", "adapter_config.json cannot be read: TypeError: "),
        ("adapter_config.json", '{"peft_type": "NEW"}', "adapter_config.json cannot be read: KeyError: 'NEW'"),
        ("adapter_config.json", "{}", "adapter_config.json cannot be read: .*it names no peft_type"),
    ],
)
def test_damaged_adapter_is_named(
    file: str, content: str, told: str, adapter: tuple[Path, Policy], folder: Path
) -> None:
    (adapter[0] / file).write_text(content)
    starts = starts_with(adapter[0], folder)
    for start in (*starts.values(), lambda: load_start(str(adapter[0]), ("score",))):
        with pytest.raises(ModelError, match=told):
            start()


def test_damaged_model_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    for _ in range(2):
        for load in (load_model, load_supervised_policy):
            with pytest.raises(ModelError, match="could not be loaded"):
                load(str(folder))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"torn")


FILLED = {
    "peft.PeftModel.from_pretrained": ["merged", "lora", "student top", "classifier"],
    "transformers.AutoModelForCausalLM.from_pretrained": ["merged", "lora", "student top"],
    "transformers.AutoModelForSequenceClassification.from_pretrained": ["classifier", "judge"],
}


@pytest.mark.parametrize("loader", FILLED)
def test_full_memory_is_not_taken_for_weights_that_do_not_fit(
    loader: str, adapter: tuple[Path, Policy], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = adapter
    starts = starts_with(path, folder)
    starts["classifier"] = lambda: load_start(str(path), ("score",))
    starts["judge"] = lambda: load_classifier(str(folder), "cpu")

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loader, full)
    for name in FILLED[loader]:
        with pytest.raises(torch.OutOfMemoryError):
            starts[name]()


def test_tilde_in_a_path_is_read_as_the_same_folder(
    adapter: tuple[Path, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    load: Callable[..., Any] = load_policy
    policy = load("~/model", form=FullForm())
    assert policy.model.name_or_path == str(folder)
    shake(policy)
    policy.save(folder.parent / "whole")
    assert torch.equal(load("~/whole").critic.head.weight, policy.critic.head.weight)
    _, trained = adapter
    going_on = LoraForm(adapter="~/adapter")
    for path, form, same in (("~/adapter", FullForm(), FullForm()), ("~/model", going_on, LoraForm(rank=2))):
        start = load(path, form=form)
        assert torch.equal(start.critic.head.weight, trained.critic.head.weight)
        assert start.trained().keys() == load_policy(str(folder), form=same).trained().keys()
    student = load_supervised_policy("~/model", form=going_on)
    assert student.trained().keys() == load_supervised_policy(str(folder), form=LoraForm(rank=2)).trained().keys()
    assert adapter_config_of("~/adapter") is not None
    assert not any("lora" in name for name, _ in load_merged("~/adapter")[0].named_parameters())
    with pytest.raises(ModelError, match="is an adapter, not a whole model"):
        load_policy("~/adapter", form=LoraForm(rank=2))
    assert load_supervised_policy("~/adapter", form=LoraForm(rank=2)).trained().keys() == student.trained().keys()


def test_adapters_own_tokenizer_comes_before_its_bases(adapter: tuple[Path, Policy], folder: Path) -> None:
    path, _ = adapter
    own = tiny_tokenizer()
    own.eos_token, own.chat_template = own.convert_ids_to_tokens(50), "own"
    own.save_pretrained(path)
    lacking = tiny_tokenizer()
    lacking.pad_token = None
    lacking.save_pretrained(folder)
    starts = {**starts_with(path, folder), "whole": lambda: load_merged(str(path))}
    del starts["tokenizer"], starts["top"], starts["student top"]
    for start in starts.values():
        started = start()
        tokenizer = started[1] if isinstance(started, tuple) else started.tokenizer
        assert (tokenizer.eos_token_id, tokenizer.chat_template) == (50, "own")
        assert isinstance(started, tuple) or started.stop_ids[0] == 50
    assert load_tokenizer(str(path)).eos_token_id == load_start(str(path), ("score",))[1].eos_token_id == 50
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    tiny_tokenizer().save_pretrained(folder)
    for start in starts.values():
        started = start()
        tokenizer = started[1] if isinstance(started, tuple) else started.tokenizer
        assert (tokenizer.eos_token_id, tokenizer.chat_template) == (0, None)


def test_adapters_torn_tokenizer_is_named(adapter: tuple[Path, Policy], folder: Path) -> None:
    (adapter[0] / "tokenizer.json").write_text("torn")
    for start in (*starts_with(adapter[0], folder).values(), lambda: load_start(str(adapter[0]), ("score",))):
        with pytest.raises(ModelError, match="could not be loaded"):
            start()


def test_adapter_of_a_student_names_its_base_by_its_absolute_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    load_supervised_policy(folder.name, form=LoraForm(rank=2)).save("adapter")
    config = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(folder.resolve())


def test_adapter_whose_base_is_gone_is_refused(adapter: tuple[Path, Policy], folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="which is no folder here"):
        load_policy(str(adapter[0]), form=HydraForm(unfrozen_layers=1))


def test_wrong_adapter_targets_list_the_right_ones(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="c_attn"):
        make_policy(tiny_model(tokenizer), tokenizer, form=LoraForm(type="lora", targets=("q_proj",)))


def test_missing_adapter_folder_is_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="adapter_config.json"):
        make_policy(tiny_model(tokenizer), tokenizer, form=LoraForm(type="lora", adapter=str(tmp_path)))


def test_logit_scaling_that_is_unknown_is_refused(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    plain = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(ModelError, match="architecture changes them"):
        make_policy(model, tokenizer)


def test_value_head_survives_saving_and_refuses_another_width(tmp_path: Path) -> None:
    head = ValueHead(8)
    with torch.no_grad():
        head.weight.copy_(torch.arange(8.0))
    save_value_head(tmp_path, head)
    assert torch.equal(load_value_head(str(tmp_path), 8).weight, head.weight)
    with pytest.raises(ModelError, match="belongs to another model"):
        load_value_head(str(tmp_path), 9)
    whole = {"weight": torch.ones(8, dtype=torch.int8), "bias": torch.zeros(())}
    save_file(whole, tmp_path / "value_head.safetensors")
    with pytest.raises(ModelError, match=r"value_head.safetensors: the weight weight is stored as I8"):
        load_value_head(str(tmp_path), 8)
    (tmp_path / "value_head.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be read"):
        load_value_head(str(tmp_path), 8)


def test_whole_folder_leaves_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("kept")

    def write_half() -> None:
        with whole_folder(target) as partial:
            (partial / "new").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert (target / "old").read_text() == "kept"


def test_stop_ids_are_the_tokenizers_and_the_generation_configs(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    assert stop_ids_of(model, tokenizer) == (tokenizer.eos_token_id, 7)


def test_new_models_are_equal_for_equal_seeds_and_leave_the_global_state(tokenizer: Any) -> None:
    sizes: dict[str, Any] = {"family": "llama", "layers": 1, "width": 16, "heads": 2, "context": 32}
    torch.manual_seed(5)
    first = make_model(tokenizer, **sizes, seed=3)
    after = torch.rand(1)
    second = make_model(tokenizer, **sizes, seed=3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_generation_config_that_transformers_would_not_save_is_mended(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    model.generation_config.temperature = 0.6
    model.generation_config.do_sample = False
    make_policy(model, tokenizer).save(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").exists()


def test_stop_tokens_that_the_model_cannot_say_are_left_out(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    model.generation_config.eos_token_id = [50256, 7]
    assert stop_ids_of(model, tokenizer) == (tokenizer.eos_token_id, 7)


def test_model_in_train_mode_is_prepared(tokenizer: Any) -> None:
    policy = make_policy(tiny_model(tokenizer).train(), tokenizer)
    assert not any(module.training for module in policy.model.modules())
