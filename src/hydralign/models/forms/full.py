"""The full form: every weight is trained, the reference is a frozen copy of the start."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor

from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.decoding import CachedDecoding
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.trunk import Trunk
from hydralign.models.folders.loading import context_of, stop_ids_of
from hydralign.models.folders.saving import save_policy_folder
from hydralign.models.folders.weights import embedding_rows
from hydralign.models.heads.value import ValueHead
from hydralign.models.precision import store_matrices_in_bf16
from hydralign.types import PolicyOutput, TokenBatch


class FullPolicy:
    """Policy form `full`. In bf16 mode the reference's matrices are stored in bf16, the trained ones in fp32."""

    trunk: Trunk | None = None
    samples_values = True

    def __init__(self, model: Any, tokenizer: Any, value_head: ValueHead, *, precision: str = "fp32") -> None:
        self.tokenizer, self.precision = tokenizer, precision
        self.value_head = value_head
        frozen = copy.deepcopy(model).requires_grad_(False)
        if precision == "bf16":
            store_matrices_in_bf16(frozen)
        self.causal = CausalModel(model, tokenizer=tokenizer, precision=precision)
        self.frozen = CausalModel(frozen, tokenizer=tokenizer, precision=precision)
        self.stop_ids = stop_ids_of(model, tokenizer)
        self.context = context_of(model)
        self.context_note, self.vocabulary = explain_rope_limit(model), embedding_rows(model.config)

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""
        return self.causal.device

    def evaluate(self, rows: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities, values and entropies of the responses."""
        return self.causal.evaluate(rows, self.value_head, self.stop_ids, entropy_gradient=entropy_gradient)

    def read_values(self, rows: TokenBatch) -> Tensor:
        """Values of the responses."""
        return self.causal.read_values(rows, self.value_head)

    @torch.no_grad()
    def reference(self, rows: TokenBatch) -> Tensor:
        """ref_logprobs_BR of the model as it was at the start."""
        return self.frozen.reference(rows, self.stop_ids)

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> CachedDecoding:
        """Begin sampling."""
        return CachedDecoding(self.causal, self.value_head, prompt_ids, new_tokens)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """All weights (tied ones once) and the value head."""
        named = {name: p for name, p in self.causal.model.named_parameters() if p.requires_grad}
        return named | {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}

    def fixed(self) -> list[Tensor]:
        """The frozen copy."""
        return list(self.frozen.model.parameters())

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write a plain transformers folder, with the value head in its own file."""
        save_policy_folder(folder, self.causal.model, self.tokenizer, self.value_head)
