"""The hydra form: policy, value and reference are light branches on one frozen trunk.

The trunk is the embeddings and the bottom layers. The policy's branch is the top `unfrozen_layers` layers with the
final norm: trained themselves, or through adapters on them. The reference is a copy of that branch as it was at the
start, which shares every tensor that is not trained. Values come from the policy's branch, or from a trained copy of
their own. The output head is shared and frozen. Every token crosses the trunk once, while it is sampled; whatever
reads it later starts from the states that the rollout carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.models.backbones.slicing import layers_of, modules_after_layers, stack_of
from hydralign.models.branch import Branch
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.loading import prepare_model
from hydralign.models.forms.lora import adapt
from hydralign.models.policy import BranchReference, MakeBackbone, ModelForm
from hydralign.models.precision import store_frozen_in_bf16


def make_hydra_form(
    model: Any,
    backbone: MakeBackbone,
    *,
    tokenizer: Any,
    unfrozen_layers: int,
    adapters: LoraForm | None = None,
    precision: str = "fp32",
    reference: bool = True,
    states: Literal["fp32", "bf16"] | None = None,
    offload: bool = False,
    seed: int = 0,
    absent_ids: Sequence[int] = (),
) -> ModelForm:
    """The top layers, or adapters on them, above a frozen trunk.

    Takes the model over. `states` None stores trunk states in the precision; `offload` keeps them on the CPU. Raises
    ModelError when the model cannot be cut there.
    """
    if states == "bf16" and precision == "fp32":
        raise ModelError(
            "states=bf16 with precision=fp32: sampling would read exact states and training rounded ones, so "
            "answers would be off-policy. Use precision bf16, or states fp32."
        )
    first = backbone(model).check_cut(unfrozen_layers)
    module = _train_top(model, first, adapters, seed)
    if adapters is not None:
        prepare_model(model, tokenizer)
    if precision == "bf16":
        store_frozen_in_bf16(model)
    whole = backbone(model)
    dtype = torch.bfloat16 if (states or precision) == "bf16" else torch.float32
    trunk = whole.trunk(first, dtype=dtype, offload=offload)
    branch = Branch(whole.top(first), absent_ids=absent_ids)
    form = ModelForm(module, branch, Branch(whole, absent_ids=absent_ids), trunk)
    if not reference:
        return form
    start = branch.backbone.with_own_weights()
    start.body.requires_grad_(False)
    if precision == "bf16":
        store_frozen_in_bf16(start.body)
    own = BranchReference(Branch(start, absent_ids=absent_ids))
    return replace(form, reference=own, reference_weights=list(start.body.parameters()))


def _train_top(model: Any, first: int, adapters: LoraForm | None, seed: int) -> Any:
    """The model, frozen but for its top layers and what follows them; or in PEFT's wrapping, but for adapters there."""
    if adapters is not None:
        return adapt(model, adapters, seed=seed)
    model.requires_grad_(False)
    ids_BT = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    above = modules_after_layers(stack_of(model), model.get_input_embeddings()(ids_BT))
    for module in [*layers_of(stack_of(model))[first:], *above]:
        module.requires_grad_(True)
    # A module above the layers may share a weight with the embeddings, which belong to the trunk.
    model.get_input_embeddings().requires_grad_(False)
    freeze_fixed(model)
    return model
