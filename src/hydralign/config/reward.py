"""Settings of reward training: from comparisons, or from labelled texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hydralign.config.base import Config
from hydralign.config.data import SourceConfig
from hydralign.config.model import ModelConfig
from hydralign.config.training import SupervisedConfig


class Comparisons(Config):
    """Learn from pairs of answers: one score, pairwise logistic loss (Stiennon et al. 2020, section 3.4)."""

    type: Literal["comparisons"] = "comparisons"
    """Tag of this task."""


class CropsConfig(Config):
    """Pieces cut out of each text at random places, so that a classifier is fair on short texts too."""

    per_text: int = Field(default=2, ge=1)
    """Pieces of each text per epoch, beside the whole text."""
    min_tokens: int = Field(default=8, ge=1)
    """Fewest tokens, inclusive."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens, inclusive."""

    @model_validator(mode="after")
    def _ordered(self) -> CropsConfig:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"crops.min_tokens={self.min_tokens} is above crops.max_tokens={self.max_tokens}: no length lies "
                "between them. Swap the two."
            )
        return self


class Labels(Config):
    """Learn from labelled texts: cross-entropy over label names, which are kept in the saved config."""

    type: Literal["labels"] = "labels"
    """Tag of this task."""
    names: dict[str, str] = Field(default_factory=dict)
    """A label as it stands in the data: the name it gets. Without any, labels keep their names, sorted."""
    crops: CropsConfig | None = None
    """Also learn from pieces of each text."""
    class_weights: Literal["balanced"] | None = None
    """balanced: in the loss every label weighs as much as every other, however rare its texts are. Probabilities are
    then about texts of which all labels are equally common, whatever `calibrate` makes of their sharpness.
    """
    calibrate: bool = True
    """Divide the outputs by a temperature fitted on held-out rows, so that probabilities mean what they say."""


class RewardTestConfig(SourceConfig):
    """Rows to test on. Nothing is held out of them: all are judged."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*$")
    """What the results are called; needed where there are several."""
    names: dict[str, str] = Field(default_factory=dict)
    """A label as it stands in these rows: the name that the trained labels have for it. Without any, these rows have
    the labels of the training rows."""
    by: str | None = Field(default=None, min_length=1)
    """A column: accuracy is also given for each value in it, such as each kind of case in a suite of tests."""


class RewardConfig(SupervisedConfig):
    """A reward model or a text classifier, saved as a plain sequence-classification folder."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Folder of this item when the recipe has several: OUT/reward/NAME."""
    task: Annotated[Comparisons | Labels, Field(discriminator="type")] = Comparisons()
    """What is learned."""
    model: ModelConfig | None = None
    """Where it starts; None is the recipe's model, with the weights that the sft section made when there is one."""
    data: SourceConfig | None = None
    """None is the recipe's data.comparisons or data.labelled."""
    test: RewardTestConfig | tuple[RewardTestConfig, ...] | None = None
    """Further rows, judged once at the end; nothing is trained, chosen or calibrated on them. A list when there are
    several sources."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Longest text; of longer ones the beginning is cut off, counted and reported. None is the model's context."""
    freeze_layers: int = Field(default=0, ge=0)
    """Embeddings and this many blocks from below keep their weights."""

    @field_validator("test", mode="before")
    @classmethod
    def _from_any_source(cls, test: Any) -> Any:
        """Take a plain source made in Python, too."""
        plain = isinstance(test, SourceConfig) and not isinstance(test, RewardTestConfig)
        return test.model_dump() if plain else test

    @model_validator(mode="after")
    def _tests_can_be_told_apart(self) -> RewardConfig:
        if isinstance(self.test, tuple):
            names = [one.name for one in self.test]
            if not names or not all(names) or len(set(names)) < len(names):
                raise ValueError(
                    f"test is a list with the names {names}: results on each are kept under its name. Give every item "
                    "of test another name, or leave test out."
                )
        tests = self.test if isinstance(self.test, tuple) else (self.test,)
        if isinstance(self.task, Comparisons) and any(test and test.names for test in tests):
            raise ValueError("test.names renames labels, and a task of comparisons has none. Leave names out.")
        return self
