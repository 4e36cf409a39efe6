"""One YAML file: where results go, which model, which data, and one section per loop."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import dirname, exists, expanduser, join, normpath, realpath, sep
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from hydralign.config.base import Config
from hydralign.config.compare import CompareConfig
from hydralign.config.data import DataConfig, parts_by_other_texts
from hydralign.config.model import LoraForm, ModelConfig
from hydralign.config.paths import require_path_fits
from hydralign.config.ppo import PPOConfig
from hydralign.config.reward import RewardConfig
from hydralign.config.sft import SFTConfig

Item = TypeVar("Item", SFTConfig, RewardConfig, PPOConfig)

OUTPUT = "{output}"
"""Stands for the recipe's output folder in every text of a recipe."""


class Recipe(Config):
    """Everything a run needs. `resolved()` fills what depends on another section; the result loads again."""

    output: str
    """Folder for results. Elsewhere in the recipe, `{output}` stands for it."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seeds data order, sampling and new weights."""
    model: ModelConfig
    """The model that is taught."""
    data: DataConfig = DataConfig()
    """The data sets by kind."""
    sft: SFTConfig | tuple[SFTConfig, ...] | None = None
    """Supervised fine-tuning; a list when there are several. Reward and ppo start from the last one's result."""
    reward: RewardConfig | tuple[RewardConfig, ...] | None = None
    """Reward model or classifier; a list when there are several."""
    ppo: PPOConfig | None = None
    """Reinforcement learning."""
    compare: CompareConfig | None = None
    """Before and after, with a report."""

    @field_validator("output")
    @classmethod
    def _is_a_folder_of_its_own(cls, output: str) -> str:
        """Refuse what names no folder, and folders that are never there for results alone."""
        place = normpath(expanduser(output))
        why = ""
        if not output.strip():
            why = "it names no folder"
        elif OUTPUT in output:
            why = f"{OUTPUT} stands for this very folder"
        elif dirname(place) == place or place == normpath(expanduser("~")):
            why = "results would lie among everything else there"
        elif set(place.split(sep)) <= {".", ".."} or _is_new_working_folder(place):
            why = "results would lie among the files of the folder that the command runs in, and replace a recipe.yaml"
        elif place.startswith("~"):
            why = "there is no user of that name"
        if why:
            raise ValueError(f"output={output!r} cannot be used: {why}. Name a folder of its own, such as runs/first.")
        return require_path_fits(output, "output")

    @model_validator(mode="after")
    def _named(self) -> Recipe:
        for section in ("sft", "reward"):
            items = getattr(self, section)
            if not isinstance(items, tuple):
                continue
            if not items:
                raise ValueError(
                    f"{section} is an empty list: it is unclear what to train. Name at least one, or leave {section} "
                    "out."
                )
            names = [item.name for item in items]
            if not all(names) or len(set(names)) < len(names):
                raise ValueError(
                    f"{section} is a list with the names {names}: each item writes into a folder of its own, called "
                    f"by its name. Give every item of {section} another name."
                )
        return self

    @model_validator(mode="after")
    def _held_out_texts_stay_apart(self) -> Recipe:
        items = self.sft if isinstance(self.sft, tuple) else (self.sft,)
        prompts = self.data.prompts
        for source in (item.data or self.data.demonstrations for item in items if item):
            if source and prompts and parts_by_other_texts(prompts, source):
                raise ValueError(
                    "data.prompts and the demonstrations are cut out of the same texts, and data.prompts.held_out goes "
                    "by the cut prompt, demonstrations by the whole text: sft would learn most of what the comparison "
                    "holds out. Set data.prompts.held_out: {by: hash, of: text}."
                )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Recipe:
        items = self.sft if isinstance(self.sft, tuple) else (self.sft,)
        starts = {
            f"sft.{place}.model" if isinstance(self.sft, tuple) else "sft.model": item.model
            for place, item in enumerate(items)
            if item
        }
        if self.ppo and (self.ppo.model or not starts):
            starts["ppo.model"] = self.ppo.model
        for name, start in starts.items():
            model = start or self.model
            if model.new and isinstance(model.form, LoraForm):
                raise ValueError(
                    f"{name if start else 'model'} has a LoRA form on a new model: adapters are saved without their "
                    "base, and these random weights lie nowhere to be loaded from. Use form: {type: full}, or a "
                    "model that lies in a folder."
                )
        return self

    @model_validator(mode="after")
    def _comparison_has_a_start(self) -> Recipe:
        if self.compare and not self.compare.before and self.ppo and (self.ppo.model or self._after_sft()).new:
            raise ValueError(
                "compare.before is not set, and ppo starts from a new model, whose random weights lie nowhere: there "
                "is nothing to compare with. Set compare.before, or leave compare out: ppo tells its own before and "
                "after."
            )
        return self

    def resolved(self) -> Recipe:
        """The same recipe with every setting that depends on another section written out."""
        output = expanduser(self.output)
        recipe = type(self).model_validate(_filled({**self.model_dump(), "output": output}, output))
        after_sft = recipe._after_sft()
        return recipe.model_copy(
            update={
                "sft": _each(recipe.sft, lambda item: _resolved(item, recipe.model, _SFT_RATES)),
                "reward": _each(recipe.reward, lambda item: _resolved(item, _scoring(after_sft), _REWARD_RATES)),
                "ppo": (ppo := recipe.ppo and _resolved(recipe.ppo, after_sft, _PPO_RATES)),
                "compare": recipe.compare and _resolved_compare(recipe.compare, ppo, recipe.output),
            }
        )

    def _after_sft(self) -> ModelConfig:
        """What reward and ppo start from: what the last sft section made, in the recipe's form and precision.

        An adapter is gone on with where the recipe's form is LoRA too; any other form has it merged into its base.
        """
        items = self.sft if isinstance(self.sft, tuple) else (self.sft,)
        if (last := items[-1]) is None:
            return self.model
        taught, form = last.model or self.model, self.model.form
        made = "/".join(
            [self.output, "sft", *([last.name] if isinstance(self.sft, tuple) and last.name else []), "model"]
        )
        start = {"path": made, "new": None, "form": form}
        if isinstance(form, LoraForm) and isinstance(taught.form, LoraForm):
            # Rank, scale and targets are the adapter's own; which layers share a trunk is the recipe's to say.
            going_on = {"adapter": made, **form.model_dump(include={"unfrozen_layers", "decoder_only"})}
            start = {"form": taught.form.model_copy(update=going_on)}
        shared = {"precision": self.model.precision, "pad_token": taught.pad_token or self.model.pad_token}
        return taught.model_copy(update={**start, **shared})


_SFT_RATES = {"new": 1e-3, "full": 2e-5, "hydra": 2e-5, "lora": 2e-4}
_REWARD_RATES = {"new": 5e-4, "full": 1e-5, "hydra": 1e-5, "lora": 1e-4}
_PPO_RATES = {"new": 3e-6, "full": 3e-6, "hydra": 3e-6, "lora": 3e-5}


def _scoring(start: ModelConfig) -> ModelConfig:
    """What a reward model starts from: the language model itself, with a trained adapter merged into it."""
    if isinstance(start.form, LoraForm) and start.form.adapter is not None:
        form = start.form.model_copy(update={"adapter": None})
        return start.model_copy(update={"path": start.form.adapter, "form": form})
    return start


def _resolved(config: Item, model: ModelConfig, rates: dict[str, float]) -> Item:
    model = config.model or model
    kind = "new" if model.new and not isinstance(model.form, LoraForm) else model.form.type
    rate = config.optimizer.learning_rate or rates[kind]
    return config.model_copy(
        update={"model": model, "optimizer": config.optimizer.model_copy(update={"learning_rate": rate})}
    )


def _resolved_compare(config: CompareConfig, ppo: PPOConfig | None, output: str) -> CompareConfig:
    if ppo is None or ppo.model is None:
        return config
    form = ppo.model.form
    start = form.adapter if isinstance(form, LoraForm) and form.adapter else ppo.model.path
    sides = {"before": config.before or start, "after": config.after or f"{output.rstrip('/')}/ppo/model"}
    return config.model_copy(update=sides)


def _each(items: Any, change: Any) -> Any:
    """A section's item or items, each changed; None stays None."""
    return tuple(change(item) for item in items) if isinstance(items, tuple) else items and change(items)


def _filled(value: Any, output: str) -> Any:
    """Plain values with the output folder put in."""
    if isinstance(value, str):
        return value.replace(OUTPUT, output.rstrip("/"))
    if isinstance(value, dict):
        return {name: _filled(part, output) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [_filled(part, output) for part in value]
    return value


def _is_new_working_folder(place: str) -> bool:
    """Whether this is the working folder under a longer name, and holds no run to go on with."""
    return realpath(place) == realpath(".") and not exists(join(place, "recipe.yaml"))
