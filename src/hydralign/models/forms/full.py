"""The full form: every weight is trained, the reference is a frozen copy of the start."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hydralign.models.branch import Branch
from hydralign.models.policy import BranchReference, MakeBackbone, ModelForm
from hydralign.models.precision import store_matrices_in_bf16


def make_full_form(
    model: Any,
    backbone: MakeBackbone,
    *,
    precision: str = "fp32",
    reference: bool = True,
    absent_ids: Sequence[int] = (),
) -> ModelForm:
    """All weights. In bf16 mode the reference's matrices are stored in bf16, the trained ones in fp32.

    Takes the model over. Without `reference` no copy is made.
    """
    start: BranchReference | None = None
    copies: list[Tensor] = []
    if reference:
        copied = copy.deepcopy(model).requires_grad_(False)
        if precision == "bf16":
            store_matrices_in_bf16(copied)
        start, copies = BranchReference(Branch(backbone(copied), absent_ids=absent_ids)), list(copied.parameters())
    whole = Branch(backbone(model), absent_ids=absent_ids)
    return ModelForm(model, whole, whole, reference=start, reference_weights=copies)
