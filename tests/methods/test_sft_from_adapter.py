"""An sft list goes on from the adapter that an earlier item made: further in the LoRA form, merged in the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hydralign.cli import main
from hydralign.config.model import Form, FullForm, LoraForm
from hydralign.errors import ModelError
from hydralign.models.forms.build import load_supervised_policy
from hydralign.testing import tiny_model


@pytest.fixture
def made(tmp_path: Path, tokenizer: Any) -> tuple[str, str]:
    """(base, adapter) as an sft item with a LoRA form writes them."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    student = load_supervised_policy(str(base), form=LoraForm(rank=2))
    with torch.no_grad():
        for parameter in student.trained().values():
            parameter.add_(torch.ones_like(parameter) * 0.05)
    student.save(adapter)
    return str(base), str(adapter)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 12)[None]).logits


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("form", [FullForm(), LoraForm(rank=7)])
def test_student_starts_as_the_adapted_model_and_saves_one_that_loads(
    form: Form, made: tuple[str, str], tmp_path: Path
) -> None:
    base, adapter = made
    wanted = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval())
    student = load_supervised_policy(adapter, form=form)
    torch.testing.assert_close(logits(student.model), wanted, atol=1e-5, rtol=0)
    shapes = {name: tuple(p.shape) for name, p in student.trained().items()}
    assert any("lora_A" in name and shape[0] == 2 for name, shape in shapes.items()) == isinstance(form, LoraForm)
    student.save(tmp_path / "after")
    if isinstance(form, LoraForm):
        config = json.loads((tmp_path / "after/adapter_config.json").read_text())
        assert Path(config["base_model_name_or_path"]).resolve() == Path(base).resolve()
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "after").eval()
    else:
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "after").eval()
    torch.testing.assert_close(logits(again), wanted, atol=1e-5, rtol=0)


def test_two_adapters_at_once_are_refused(made: tuple[str, str]) -> None:
    _, adapter = made
    with pytest.raises(ModelError, match="are two adapters: .* leave form.adapter out"):
        load_supervised_policy(adapter, form=LoraForm(adapter=adapter))


def test_plan_says_which_before_and_after_the_first_item_has_run(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = made
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"this {n} ", "completion": "that thing"}) + "\n" for n in range(40)))
    out = tmp_path / "out"
    first = out / "sft/a/model"
    lora = {"type": "lora", "rank": 2}
    items = [
        {"name": "a", "model": {"path": base, "form": lora}},
        {"name": "b", "model": {"path": "{output}/sft/a/model", "form": lora}},
        {"name": "c", "model": {"path": "{output}/sft/b/model", "form": {"type": "full"}}},
    ]
    shared = {"epochs": 0.2, "max_tokens": 16, "batch": {"rows": 2}, "optimizer": {"learning_rate": 1e-3}}
    recipe = {
        "output": str(out),
        "model": {"path": base},
        "data": {"demonstrations": {"source": str(data), "held_out": {"by": "hash", "percent": 20}}},
        "sft": [{**item, **shared} for item in items],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["sft", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"start      the adapter that sft/a makes, trained further on its base {base}" in told
    assert f"start      the adapter that sft/b makes, merged into its base {base}" in told
    assert main(["sft", str(path)]) == 0
    assert (out / "sft/b/model/adapter_config.json").exists()
    assert (out / "sft/c/model/model.safetensors").exists()
    capsys.readouterr()
    assert main(["sft", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"start      adapter {first}, trained further on its base {base}" in told
    assert f"start      adapter {out / 'sft/b/model'}, merged into its base {base}" in told
