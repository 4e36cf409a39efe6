"""A model that is only sampled and read, with another model as its reference: what a comparison needs.

Nothing is trained here, so there is no frozen copy, no value head and nothing to save.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from hydralign.errors import ModelError
from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.decoding import CachedDecoding, check_decoding
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.trunk import Trunk
from hydralign.models.bf16_speed import concrete_precision
from hydralign.models.folders.loading import context_of, stop_ids_of
from hydralign.models.folders.weights import embedding_rows
from hydralign.models.heads.value import ValueHead
from hydralign.models.precision import store_matrices_in_bf16
from hydralign.types import PolicyOutput, TokenBatch


class Reader:
    """Policy form of a finished model. Its reference is `reference`, or the model itself."""

    trunk: Trunk | None = None
    samples_values = True
    precision: str

    def __init__(
        self, model: Any, tokenizer: Any, *, reference: CausalModel | None = None, precision: str = "fp32"
    ) -> None:
        """Takes the model over. Raises ModelError when it cannot be sampled, or reference has other tokens."""
        precision = concrete_precision(precision, model.device)
        model.requires_grad_(False)
        check_decoding(CausalModel(model))
        if precision == "bf16":
            store_matrices_in_bf16(model)
        self.tokenizer, self.precision = tokenizer, precision
        self.stop_ids, self.context = stop_ids_of(model, tokenizer), context_of(model)
        self.context_note, self.vocabulary = explain_rope_limit(model), embedding_rows(model.config)
        self.causal = CausalModel(model, tokenizer=tokenizer, precision=precision)
        self.causal.check_readout()
        self._reference = reference or self.causal
        # What the reference cannot say has no KL to it, so it is not said here.
        absent = {*self.causal.head.absent_ids.tolist(), *self._reference.head.absent_ids.tolist()}
        self.causal.head.absent_ids = torch.tensor(sorted(absent), dtype=torch.long)
        self._no_values = ValueHead(model.config.hidden_size).to(self.causal.device)
        if self._reference.vocabulary != self.causal.vocabulary:
            raise ModelError(
                f"the two models have {self._reference.vocabulary:,} and {self.causal.vocabulary:,} tokens: KL between "
                "them is not defined. Compare models that share a tokenizer."
            )

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""
        return self.causal.device

    @torch.no_grad()
    def evaluate(self, rows: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities and entropies of the responses; values are 0."""
        return self.causal.evaluate(rows, self._no_values, self.stop_ids, entropy_gradient=entropy_gradient)

    @torch.no_grad()
    def read_values(self, rows: TokenBatch) -> Tensor:
        """Zeros."""
        return self.causal.read_values(rows, self._no_values)

    @torch.no_grad()
    def reference(self, rows: TokenBatch) -> Tensor:
        """ref_logprobs_BR of the other model."""
        return self._reference.reference(rows, self.stop_ids)

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> CachedDecoding:
        """Begin sampling."""
        return CachedDecoding(self.causal, self._no_values, prompt_ids, new_tokens)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Nothing."""
        return {}

    def fixed(self) -> list[Tensor]:
        """All weights."""
        return list(self.causal.model.parameters())

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Refused: the model is saved already, where it was read from."""
        raise ModelError(f"{folder}: a reader writes no model, since it changes none. Copy the folder it came from.")
