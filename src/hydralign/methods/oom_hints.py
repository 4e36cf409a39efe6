"""What helps a section when one row at a time is more than memory holds: only what its settings leave to change."""

from __future__ import annotations

from hydralign.config.model import FullForm, HydraForm, LoraForm, ModelConfig
from hydralign.config.ppo import PPOConfig
from hydralign.config.reward import RewardConfig
from hydralign.config.sft import SFTConfig
from hydralign.config.training import SupervisedConfig
from hydralign.micro_batches import OOM_HINTS

ADAPTERS = "LoRA (model.form: {type: lora})"
SMALLER = "a smaller model"


def ppo_oom_hints(config: PPOConfig, device: str) -> list[str]:
    """Settings that lower what PPO needs, those that cost least first; `device` is a kind, such as cpu or cuda.

    The general ones when the config does not say which model is trained.
    """
    if config.model is None:
        return list(OOM_HINTS)
    form = config.model.form
    if isinstance(form, FullForm):
        fewer = ["training the top layers only (model.form: {type: hydra})", *_adapters(config.model)]
    elif isinstance(form, HydraForm):
        # On a CPU the states lie in its memory anyway.
        offloads = not form.offload and device != "cpu"
        fewer = [
            *(["model.form.value: head"] if form.value == "branch" else []),
            *_fewer_layers(form),
            *(["trunk states in the CPU's memory (model.form.offload: true)"] if offloads else []),
        ]
    else:
        fewer = _fewer_layers(form)
    length = "lengths" if config.sampling.lengths else "max_new_tokens"
    return [*fewer, *_rounding(config.model), f"shorter prompts or answers (ppo.sampling.{length})", SMALLER]


def supervised_oom_hints(config: SupervisedConfig) -> list[str]:
    """The same for sft and reward sections, in which a hydra form trains every layer."""
    if not isinstance(config, SFTConfig | RewardConfig) or config.model is None:
        return list(OOM_HINTS)
    form, section = config.model.form, "sft" if isinstance(config, SFTConfig) else "reward"
    if isinstance(config, RewardConfig):
        fewer = [] if isinstance(form, LoraForm) else [ADAPTERS]
        fewer.append("more frozen layers (reward.freeze_layers)")
    else:
        fewer = _fewer_layers(form) if isinstance(form, LoraForm) else _adapters(config.model)
    return [*fewer, *_rounding(config.model), f"shorter texts ({section}.max_tokens)", SMALLER]


def _adapters(model: ModelConfig) -> list[str]:
    """For policies: they save adapters without their base, which a new model has nowhere."""
    return [] if model.new else [ADAPTERS]


def _fewer_layers(form: HydraForm | LoraForm) -> list[str]:
    if form.unfrozen_layers is None:
        return ["adapters on the top layers only (model.form.unfrozen_layers)"]
    if form.unfrozen_layers == 1:
        return []
    return [f"fewer trained layers (model.form.unfrozen_layers below {form.unfrozen_layers})"]


def _rounding(model: ModelConfig) -> list[str]:
    return ["model.precision: bf16"] if model.precision != "bf16" else []
