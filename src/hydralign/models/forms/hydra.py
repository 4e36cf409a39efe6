"""The hydra form: policy, value and reference are light branches on one frozen trunk.

The trunk is the embeddings and the bottom layers. The policy's branch is the top `unfrozen_layers` layers with the
final norm: trained themselves, or through adapters on them. The reference is a copy of that branch as it was at the
start, which shares every tensor that is not trained. Values come from the policy's branch, or from a trained copy of
their own. The output head is shared and frozen. Every token crosses the trunk once, while it is sampled; whatever
reads it later starts from the states that the rollout carries.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.decoding import CachedDecoding
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.slicing import check_split, copy_trained, layers_of, modules_after_layers, slice_layers
from hydralign.models.backbones.trunk import Trunk
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.loading import context_of, prepare_model, stop_ids_of
from hydralign.models.folders.saving import model_folder, save_model, save_value_branch, save_value_head
from hydralign.models.folders.weights import embedding_rows
from hydralign.models.forms.lora import adapt, save_adapter
from hydralign.models.heads.value import ValueHead
from hydralign.models.precision import store_frozen_in_bf16
from hydralign.types import PolicyOutput, TokenBatch


class HydraPolicy:
    """Policy form `hydra`, and `lora` on the top layers only."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        value_head: ValueHead,
        *,
        unfrozen_layers: int,
        value: Literal["head", "branch"] = "head",
        adapters: LoraForm | None = None,
        precision: str = "fp32",
        states: Literal["fp32", "bf16"] | None = None,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        """Takes the model over. `states` None stores trunk states in the precision; `offload` keeps them on the CPU.

        Raises ModelError when the model cannot be cut there.
        """
        self.tokenizer, self.precision, self.value_head = tokenizer, precision, value_head
        self.stop_ids, self.context = stop_ids_of(model, tokenizer), context_of(model)
        self.context_note, self.vocabulary = explain_rope_limit(model), embedding_rows(model.config)
        if states == "bf16" and precision == "fp32":
            raise ModelError(
                "states=bf16 with precision=fp32: sampling would read exact states and training rounded ones, so "
                "answers would be off-policy. Use precision bf16, or states fp32."
            )
        first = check_split(model, unfrozen_layers)
        self.peft: Any = _train_top(model, first, adapters, seed)
        if adapters is not None:
            prepare_model(model, tokenizer)
        if precision == "bf16":
            store_frozen_in_bf16(model)
        self.whole = CausalModel(model, tokenizer=tokenizer, precision=precision)
        dtype = torch.bfloat16 if (states or precision) == "bf16" else torch.float32
        self.trunk = Trunk(self.whole, first, dtype=dtype, offload=offload)
        top = slice_layers(model.base_model, first, first + unfrozen_layers)
        self.causal = self._branch(top)
        self.values = self._branch(copy_trained(top)) if value == "branch" else None
        self.frozen = self._branch(copy_trained(top))
        self.frozen.body.requires_grad_(False)
        if precision == "bf16":
            store_frozen_in_bf16(self.frozen.body)

    def _branch(self, body: Any) -> CausalModel:
        entry = layers_of(body)[0]
        return CausalModel(self.whole.model, tokenizer=self.tokenizer, precision=self.precision, body=body, entry=entry)

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""
        return self.whole.device

    @property
    def samples_values(self) -> bool:
        """Whether sampling tells values: not when they have a branch of their own."""
        return self.values is None

    def _with_states(self, rows: TokenBatch) -> TokenBatch:
        return rows if rows.trunk_BTD is not None else rows.with_trunk(self.trunk.states(rows))

    def evaluate(self, rows: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities, values and entropies of the responses, from the branches alone."""
        return self.causal.evaluate(
            self._with_states(rows),
            self.value_head,
            self.stop_ids,
            entropy_gradient=entropy_gradient,
            values=self.values,
        )

    def read_values(self, rows: TokenBatch) -> Tensor:
        """Values of the responses, from the branch that has them."""
        return (self.values or self.causal).read_values(self._with_states(rows), self.value_head)

    @torch.no_grad()
    def reference(self, rows: TokenBatch) -> Tensor:
        """ref_logprobs_BR of the branch as it was at the start."""
        return self.frozen.reference(self._with_states(rows), self.stop_ids)

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> CachedDecoding:
        """Begin sampling; trunk states are harvested on the way."""
        return CachedDecoding(self.whole, self.value_head, prompt_ids, new_tokens, trunk=self.trunk)

    def trained(self) -> dict[str, nn.Parameter]:
        """The branch's weights (or its adapters), the value branch's, and the value head."""
        model = self.peft or self.whole.model
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.values is not None:
            own = self.values.body.named_parameters()
            named |= {f"value_branch.{name}": p for name, p in own if p.requires_grad}
        return named | {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}

    def fixed(self) -> list[Tensor]:
        """Trunk, output head, and the reference's own weights."""
        both = [*self.whole.model.parameters(), *self.frozen.body.parameters()]
        return list({id(p): p for p in both if not p.requires_grad}.values())

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write a plain transformers folder, branch and trunk in one, or a PEFT folder; values in their own files."""
        with model_folder(folder) as partial:
            if self.peft is None:
                save_model(self.whole.model, partial)
            else:
                save_adapter(self.peft, partial)
            self.tokenizer.save_pretrained(partial)
            save_value_head(partial, self.value_head)
            if self.values is not None:
                save_value_branch(partial, self.values.body)


def _train_top(model: Any, first: int, adapters: LoraForm | None, seed: int) -> Any:
    """Freeze the model but for its top layers and what follows them, or for adapters on these; returns PEFT's wrapping
    of the model, or None.
    """
    top = list(layers_of(model.base_model))[first:]
    if adapters is None:
        model.requires_grad_(False)
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        for module in [*top, *modules_after_layers(model.base_model, model.get_input_embeddings()(ids_BT))]:
            module.requires_grad_(True)
        # A module above the layers may share a weight with the embeddings, which belong to the trunk.
        model.get_input_embeddings().requires_grad_(False)
        freeze_fixed(model)
        return None
    settings = adapters.model_dump(include={"rank", "alpha", "targets", "adapter"})
    return adapt(model, **settings, seed=seed, layers=range(first, first + len(top)))
