"""One YAML file: where results go, which model, which data, and one section per loop."""

from __future__ import annotations

from pydantic import Field

from hydralign.config.base import Config
from hydralign.config.data import DataConfig
from hydralign.config.model import LoraForm, ModelConfig
from hydralign.config.ppo import PPOConfig


class Recipe(Config):
    """Everything a run needs. `resolved()` fills what depends on another section; the result loads again."""

    output: str
    """Folder for results."""
    seed: int = Field(default=0, ge=0)
    """Seeds data order, sampling and new weights."""
    model: ModelConfig
    """The model that is taught."""
    data: DataConfig = DataConfig()
    """The data sets by kind."""
    ppo: PPOConfig | None = None
    """Reinforcement learning."""

    def resolved(self) -> Recipe:
        """The same recipe with every setting that depends on another section written out."""
        if self.ppo is None or self.ppo.optimizer.learning_rate is not None:
            return self
        rate = 3e-5 if isinstance(self.model.form, LoraForm) else 3e-6
        optimizer = self.ppo.optimizer.model_copy(update={"learning_rate": rate})
        return self.model_copy(update={"ppo": self.ppo.model_copy(update={"optimizer": optimizer})})
