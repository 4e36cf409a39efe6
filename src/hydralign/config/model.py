"""Which model is trained, in which form and precision."""

from __future__ import annotations

from os.path import expanduser
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hydralign.config.base import Config


class NewModelConfig(Config):
    """A model made from scratch with random weights and a byte-level BPE tokenizer of its own."""

    family: Literal["gpt2", "llama", "t5", "bart", "bert"] = "gpt2"
    """Architecture. t5 and bart have an encoder for prompts and a decoder for answers, of `layers` each. bert reads
    both ways: it can classify, and cannot write.
    """
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
    rank: int = Field(default=16, ge=1, le=16384)
    """Rank r; at most the width of what is adapted."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear layers to adapt; None takes PEFT's choice for the architecture."""
    adapter: str | None = None
    """Folder of a trained adapter to go on from; the reference is then that adapter, not the bare base."""
    unfrozen_layers: int | None = Field(default=None, ge=1)
    """Adapt the top layers only, on a trunk that every token crosses once, as in the hydra form; None adapts all."""
    decoder_only: bool = False
    """Of an encoder–decoder adapt the decoder alone: its encoder then reads each prompt once for all of a rollout."""

    @field_validator("adapter")
    @classmethod
    def _without_tilde(cls, adapter: str | None) -> str | None:
        return adapter and expanduser(adapter)


class HydraForm(Config):
    """The top layers are trained; policy, value and reference share one frozen trunk that every token crosses once."""

    type: Literal["hydra"] = "hydra"
    """Tag of this form."""
    unfrozen_layers: int = Field(default=2, ge=1)
    """Trained layers k, counted from the top; at most one less than the model has."""
    value: Literal["head", "branch"] = "head"
    """Values from a linear head on the policy's branch, or from a trained copy of the top layers of their own."""
    states: Literal["fp32", "bf16"] | None = None
    """How a rollout stores trunk states; None follows the precision."""
    offload: bool = False
    """Keep a rollout's trunk states in the CPU's memory."""


Form = Annotated[FullForm | LoraForm | HydraForm, Field(discriminator="type")]


class ModelConfig(Config):
    """The language model that is taught."""

    path: str | None = None
    """Folder or hub id of a transformers model. Give this or `new`."""
    new: NewModelConfig | None = None
    """Make a model from scratch instead."""
    form: Form = FullForm()
    """What is trained, and what the reference is."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: frozen matrices stored in bf16, trained weights in fp32, matrix products in bf16. auto: bf16 where a
    measurement at the start finds its products clearly faster than fp32's, else fp32.

    In the hydra and LoRA forms that includes a head tied to the embeddings: look-ups are rounded, of policy and
    reference alike.
    """
    pad_token: str | None = None
    """Padding token for a tokenizer that has none; may be an existing token such as <|endoftext|>."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.path is None) == (self.new is None):
            given = "both were given" if self.path else "neither was given"
            raise ValueError(
                f"model.path and model.new: {given}, so it is unclear which model to train. "
                "Give exactly one: a folder or hub id under path, or sizes under new. A section's own model inherits "
                "nothing from the recipe's."
            )
        return self

    @model_validator(mode="after")
    def _states_as_precise_as_sampling(self) -> ModelConfig:
        if isinstance(self.form, HydraForm) and self.form.states == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"model.form.states=bf16 with model.precision={self.precision}: in fp32 sampling would read exact "
                "states and training rounded ones, so answers would be off-policy. Use precision bf16, or states fp32."
            )
        return self
