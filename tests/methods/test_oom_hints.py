"""When one row at a time is too many, the message names what helps in the form at hand, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hydralign.config import PPOConfig
from hydralign.config.model import ModelConfig
from hydralign.config.reward import RewardConfig
from hydralign.config.sft import SFTConfig
from hydralign.data import PromptStream
from hydralign.errors import MemoryLimitError
from hydralign.methods.oom_hints import ppo_oom_hints, supervised_oom_hints
from hydralign.methods.ppo import PPOParts, train
from hydralign.rewards.combine import RewardTerm
from hydralign.testing import LengthReward, tiny_policy
from hydralign.tracking import JsonLines, Trackers
from tests.conftest import FORMS
from tests.test_micro_batches import cramp, many

ANSWERS, SMALLER = "shorter prompts or answers (ppo.sampling.max_new_tokens)", "a smaller model"
BF16 = "model.precision: bf16"
FEWER = "fewer trained layers (model.form.unfrozen_layers below 4)"
OFFLOAD = "trunk states in the CPU's memory (model.form.offload: true)"
HYDRA = "training the top layers only (model.form: {type: hydra})"
LORA = "LoRA (model.form: {type: lora})"


def ppo(model: dict[str, Any] | None, **settings: Any) -> PPOConfig:
    rewards = [{"type": "function", "function": "unused:unused"}]
    start = {"path": "base", **model} if model is not None else None
    return PPOConfig.model_validate({"rewards": rewards, "model": start, **settings})


@pytest.mark.parametrize(
    ("form", "precision", "device", "expected"),
    [
        ({"type": "full"}, "fp32", "cpu", [HYDRA, LORA, BF16]),
        ({"type": "full"}, "bf16", "cuda", [HYDRA, LORA]),
        ({"type": "hydra", "unfrozen_layers": 4}, "fp32", "cpu", [FEWER, BF16]),
        ({"type": "hydra", "unfrozen_layers": 4}, "bf16", "cuda", [FEWER, OFFLOAD]),
        ({"type": "hydra", "unfrozen_layers": 4, "offload": True}, "bf16", "cuda", [FEWER]),
        ({"type": "hydra", "unfrozen_layers": 1, "value": "branch"}, "bf16", "cpu", ["model.form.value: head"]),
        ({"type": "hydra", "unfrozen_layers": 1}, "bf16", "cpu", []),
        ({"type": "lora"}, "bf16", "cuda", ["adapters on the top layers only (model.form.unfrozen_layers)"]),
        ({"type": "lora", "unfrozen_layers": 4}, "fp32", "cuda", [FEWER, BF16]),
        ({"type": "lora", "unfrozen_layers": 1}, "bf16", "cuda", []),
    ],
)
def test_ppo_names_what_its_form_leaves_to_change(
    form: dict[str, Any], precision: str, device: str, expected: list[str]
) -> None:
    config = ppo({"form": form, "precision": precision})
    assert ppo_oom_hints(config, device) == [*expected, ANSWERS, SMALLER]


def test_ppo_names_the_setting_that_says_how_long_answers_are() -> None:
    told = ppo_oom_hints(ppo({}, sampling={"lengths": {"low": 2, "high": 4}}), "cpu")
    assert "shorter prompts or answers (ppo.sampling.lengths)" in told


@pytest.mark.parametrize(
    ("kind", "model", "settings", "expected"),
    [
        (SFTConfig, {}, {}, [LORA, BF16]),
        (SFTConfig, {"form": {"type": "hydra"}, "precision": "bf16"}, {}, [LORA]),
        (
            SFTConfig,
            {"form": {"type": "lora"}, "precision": "bf16"},
            {},
            ["adapters on the top layers only (model.form.unfrozen_layers)"],
        ),
        (SFTConfig, {"form": {"type": "lora", "unfrozen_layers": 4}, "precision": "bf16"}, {}, [FEWER]),
        (RewardConfig, {}, {}, [LORA, "more frozen layers (reward.freeze_layers)", BF16]),
        (
            RewardConfig,
            {"form": {"type": "lora"}, "precision": "bf16"},
            {},
            ["more frozen layers (reward.freeze_layers)"],
        ),
    ],
)
def test_supervised_loops_name_what_helps_them(
    kind: Any, model: dict[str, Any], settings: dict[str, Any], expected: list[str]
) -> None:
    config = kind(model=ModelConfig.model_validate({"path": "base", **model}), **settings)
    section = "sft" if kind is SFTConfig else "reward"
    assert supervised_oom_hints(config) == [*expected, f"shorter texts ({section}.max_tokens)", SMALLER]


def test_adapters_are_not_named_where_a_recipe_refuses_them_on_a_new_model() -> None:
    new = ModelConfig.model_validate({"new": {}})
    assert LORA not in ppo_oom_hints(ppo({"path": None, "new": {}}), "cpu")
    assert LORA not in supervised_oom_hints(SFTConfig(model=new))
    assert LORA in supervised_oom_hints(RewardConfig(model=new))


def test_run_that_cannot_go_on_ends_with_them(tmp_path: Path, tokenizer: Any) -> None:
    policy = cramp(tiny_policy(form=FORMS["hydra"], tokenizer=tokenizer), 0)
    config = ppo({"form": {"type": "hydra", "unfrozen_layers": 1}}, steps=1, optimizer={"learning_rate": 1e-3})
    record = JsonLines(tmp_path)
    parts = PPOParts(
        policy,
        PromptStream(tuple(many(policy))),
        (RewardTerm("length", LengthReward(3)),),
        tmp_path,
        Trackers(record),
    )
    with pytest.raises(MemoryLimitError) as met:
        train(config, parts)
    record.close()
    assert str(met.value).endswith(
        "there is no smaller micro-batch. What helps: model.precision: bf16; shorter prompts or answers "
        "(ppo.sampling.max_new_tokens); a smaller model."
    )
