"""Which model is trained, in which form and precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hydralign.config.base import Config


class NewModelConfig(Config):
    """A model made from scratch with random weights and a byte-level BPE tokenizer of its own."""

    family: Literal["gpt2", "llama", "bert"] = "gpt2"
    """Architecture. bert reads both ways: it can classify, and cannot write."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    width: int = Field(default=256, ge=8)
    """Hidden size D."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide width."""
    context: int = Field(default=256, ge=8)
    """Longest sequence in tokens."""
    vocabulary: int = Field(default=4096, ge=260)
    """Tokens to train the tokenizer to: 256 bytes, the two special tokens and merges."""

    @model_validator(mode="after")
    def _divides(self) -> NewModelConfig:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} is not a multiple of 2·heads={2 * self.heads}: every head needs an even "
                "share of the width. Change model.new.width or model.new.heads."
            )
        return self


class FullForm(Config):
    """Every weight is trained; the reference is a frozen copy."""

    type: Literal["full"] = "full"
    """Tag of this form."""


class LoraForm(Config):
    """Low-rank adapters are trained; the reference is the same model without them (or their start)."""

    type: Literal["lora"] = "lora"
    """Tag of this form."""
    rank: int = Field(default=16, ge=1)
    """Rank r."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice for the architecture."""
    adapter: str | None = None
    """Folder of a trained adapter to go on from; the reference is then that adapter, not the bare base."""


Form = Annotated[FullForm | LoraForm, Field(discriminator="type")]


class ModelConfig(Config):
    """The language model that is taught."""

    path: str | None = None
    """Folder or hub id of a transformers model. Give this or `new`."""
    new: NewModelConfig | None = None
    """Make a model from scratch instead."""
    form: Form = FullForm()
    """What is trained, and what the reference is."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: frozen matrices stored in bf16, trained weights in fp32, matrix products in bf16."""
    pad_token: str | None = None
    """Padding token for a tokenizer that has none; may be an existing token such as <|endoftext|>."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.path is None) == (self.new is None):
            given = "both were given" if self.path else "neither was given"
            raise ValueError(
                f"model.path and model.new: {given}, so it is unclear which model to train. "
                "Give exactly one: a folder or hub id under path, or sizes under new."
            )
        return self
