"""Precision auto: what is measured decides, every process and every resumption agree, and it is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hydralign.cli import main
from hydralign.config import dump_config, load_recipe
from hydralign.config.compare import CompareConfig
from hydralign.config.model import ModelConfig
from hydralign.distributed import Distributed
from hydralign.errors import ConfigError
from hydralign.models import bf16_speed as measuring
from hydralign.models.bf16_speed import describe_speed, faster_precision
from hydralign.models.classifiers.training import wrap_classifier
from hydralign.models.folders.from_scratch import make_classifier
from hydralign.models.forms.build import make_frozen_policy, make_policy, make_supervised_policy
from hydralign.runs.kinds import all_steps
from hydralign.runs.precision import choose_precision, precision_of, resolve_precision
from hydralign.testing import tiny_model

MEASURE = measuring.bf16_speed
"""The function itself: elsewhere in the tests another stands in its place."""

SLOW, FAST = 0.0073, 1.9


def at(speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose bf16 products run at this speed."""
    monkeypatch.setattr(measuring, "bf16_speed", lambda kind: speed)


def test_measures_a_speed_on_this_cpu_and_asks_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    MEASURE.cache_clear()
    assert 0 < MEASURE("cpu") < math.inf
    assert MEASURE("cpu") == MEASURE("cpu")  # measured once
    for has_units, speed in ((True, math.inf), (False, 0.0)):
        MEASURE.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_units: has)
        assert MEASURE("cuda") == speed
    MEASURE.cache_clear()
    assert MEASURE("npu") == 0.0


@pytest.mark.parametrize(("first", "whole"), [(0.01, None), (0.9, 1.7)])
def test_slow_machine_is_not_kept_busy(first: float, whole: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([first] if whole is None else [first, whole])
    monkeypatch.setattr(measuring, "_measured", lambda *sizes, times: next(speeds))
    MEASURE.cache_clear()
    assert MEASURE("cpu") == (whole or first)
    assert not list(speeds)
    MEASURE.cache_clear()


@pytest.mark.parametrize(
    ("speed", "precision", "told"),
    [
        (SLOW, "fp32", "at 0.0073 times the speed of fp32 ones here (137 times slower)"),
        (0.7, "fp32", "at 0.7 times the speed of fp32 ones here"),
        (1.1, "fp32", "at 1.1 times the speed of fp32 ones here"),
        (FAST, "bf16", "at 1.9 times the speed of fp32 ones here"),
        (math.inf, "bf16", "this GPU has bf16 units"),
        (0.0, "fp32", "this device has no bf16 units"),
    ],
)
def test_bf16_only_where_it_is_clearly_faster(speed: float, precision: str, told: str) -> None:
    assert faster_precision(speed) == precision
    assert describe_speed(speed).endswith(told)


def test_auto_is_the_default_and_bf16_states_need_bf16_for_certain() -> None:
    assert (ModelConfig(path="m").precision, CompareConfig().precision) == ("auto", "auto")
    form = {"type": "hydra", "states": "bf16"}
    assert ModelConfig.model_validate({"path": "m", "precision": "bf16", "form": form})
    for precision in ("auto", "fp32"):
        with pytest.raises(ValueError, match=f"states=bf16 with model.precision={precision}"):
            ModelConfig.model_validate({"path": "m", "precision": precision, "form": form})


@pytest.fixture
def recipe(tmp_path: Path, tokenizer: Any) -> dict[str, Any]:
    """A little sft, then a comparison of the model with itself."""
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["that and this thing of words"[:n] for n in range(1, 27)]
    rows = [{"prompt": text, "completion": " words"} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rule.py").write_text("def length(completions):\n    return [float(len(c)) for c in completions]\n")
    source = {"source": str(tmp_path / "rows.jsonl"), "held_out": {"by": "hash", "percent": 40}}
    model = str(tmp_path / "model")
    score = [{"type": "function", "function": f"{tmp_path / 'rule.py'}:length"}]
    sampling = {"max_new_tokens": 2}
    return {
        "output": str(tmp_path / "out"),
        "model": {"path": model},
        "data": {"demonstrations": source, "prompts": source},
        "sft": {"max_tokens": 40, "batch": {"rows": 8, "micro_batch_size": 8}},
        "compare": {"before": model, "after": model, "prompts": 4, "score": score, "sampling": sampling},
    }


def written(recipe: dict[str, Any]) -> Path:
    path = Path(recipe["output"]).parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_run_says_and_records_what_auto_became_and_goes_on_with_it(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(recipe), Path(recipe["output"])
    at(SLOW, monkeypatch)
    assert main(["sft", str(path)]) == 0
    told = capsys.readouterr()
    assert "sft: precision auto is fp32: bf16 products run at 0.0073 times" in told.out + told.err
    assert yaml.safe_load((out / "sft/config.yaml").read_text())["model"]["precision"] == "fp32"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["model"]["precision"] == "auto"
    (out / "sft/evaluation.json").unlink()  # as if it had been interrupted, and goes on elsewhere
    at(FAST, monkeypatch)
    assert main(["run", str(path)]) == 0
    told = capsys.readouterr()
    said = told.out + told.err
    assert "sft: precision auto stays fp32, in which this section began; anew it would be bf16" in said
    assert "compare: precision auto is bf16" in said
    assert said.index("compare: precision") < said.index("steps")  # before the first section runs
    configs = {name: yaml.safe_load((out / name / "config.yaml").read_text()) for name in ("sft", "compare")}
    assert (configs["sft"]["model"]["precision"], configs["compare"]["precision"]) == ("fp32", "bf16")


@pytest.mark.parametrize(("precision", "refused"), [("auto", False), ("bf16", False), ("fp32", True)])
def test_another_precision_than_a_section_was_made_in_is_refused(
    precision: str, refused: bool, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydralign.runs.recipes import conflicts

    stored = load_recipe(written(recipe))
    out = Path(recipe["output"])
    (out / "sft").mkdir(parents=True)
    at(FAST, monkeypatch)
    made = resolve_precision(stored, all_steps(stored)[0], Distributed())[1].config
    (out / "sft/config.yaml").write_text(dump_config(made))
    (out / "sft/evaluation.json").write_text("{}")
    recipe["model"]["precision"] = precision
    assert bool(conflicts(stored, load_recipe(written(recipe)), out)) == refused


@pytest.mark.parametrize(
    ("precision", "speed", "told"),
    [
        ("auto", SLOW, "precision  auto is fp32: bf16 products run at 0.0073"),
        ("auto", FAST, "precision  auto is bf16: bf16 products run at 1.9"),
        ("bf16", SLOW, "precision  bf16, as the recipe says, is slow here: bf16 products run at 0.0073"),
        ("bf16", FAST, None),
        ("fp32", FAST, None),
    ],
)
def test_dry_run_tells_what_is_chosen_or_slow(
    precision: str,
    speed: float,
    told: str | None,
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe["model"]["precision"] = recipe["compare"]["precision"] = precision
    at(speed, monkeypatch)
    assert main(["run", str(written(recipe)), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(told or "precision  ") for line in lines) == (2 if told else 0)


def test_processes_take_the_main_ones_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process measures nothing, and receives bf16."""
    other = Distributed(rank=1, count=2)
    monkeypatch.setattr(Distributed, "sum", lambda self, x: x + 1 if x.dim() == 0 else x)
    monkeypatch.setattr(measuring, "bf16_speed", lambda kind: pytest.fail("measured on another process"))
    recipe: Any = load_recipe(written({"output": str(tmp_path / "out"), "model": {"path": "m"}, "sft": {}}))
    used, chosen, line = resolve_precision(recipe, all_steps(recipe)[0], other)
    assert (used.model.precision, precision_of(chosen.config), line) == ("bf16", "bf16", None)


def test_python_functions_take_auto_and_no_unknown_precision(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[Any] = [make_policy, make_frozen_policy, make_supervised_policy, wrap_classifier]
    models = [tiny_model(tokenizer) for _ in makers[:3]]
    models.append(make_classifier(tokenizer, family="gpt2", labels=["score"], layers=1, width=32, heads=2, context=64))
    at(FAST, monkeypatch)
    for make, model in zip(makers, models, strict=True):
        with pytest.raises(ConfigError, match="precision='fp16'"):
            make(model, tokenizer, precision="fp16")
        assert make(model, tokenizer, precision="auto").precision == "bf16"


def test_damaged_config_of_a_begun_section_tells_no_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(FAST, monkeypatch)
    recipe = load_recipe(written({"output": str(tmp_path / "out"), "model": {"path": "m"}, "sft": {}}))
    (step,) = all_steps(recipe)
    step.folder.mkdir(parents=True)
    (step.folder / "config.yaml").write_text("model: {path: m, precision: int8}\n")
    assert choose_precision(recipe, step, "cpu")[0] == "bf16"
