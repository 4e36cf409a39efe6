"""The full form: every weight is trained, the reference is a frozen copy of the start."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydralign.models.backbones.trunk import Trunk
from hydralign.models.branch import Branch
from hydralign.models.folders.saving import save_model
from hydralign.models.policy import BranchReference, MakeBackbone
from hydralign.models.precision import store_matrices_in_bf16


class FullModel:
    """All weights. In bf16 mode the reference's matrices are stored in bf16, the trained ones in fp32."""

    trunk: Trunk | None = None

    def __init__(
        self,
        model: Any,
        backbone: MakeBackbone,
        *,
        precision: str = "fp32",
        reference: bool = True,
        absent_ids: Sequence[int] = (),
    ) -> None:
        """Takes the model over. Without `reference` no copy is made."""
        self.reference: BranchReference | None = None
        if reference:
            copied = copy.deepcopy(model).requires_grad_(False)
            if precision == "bf16":
                store_matrices_in_bf16(copied)
            self.reference = BranchReference(Branch(backbone(copied), absent_ids=absent_ids))
        self.branch = self.whole = Branch(backbone(model), absent_ids=absent_ids)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """All weights, tied ones once."""
        return {name: p for name, p in self.whole.backbone.model.named_parameters() if p.requires_grad}

    def frozen(self) -> list[Tensor]:
        """The frozen copy, and what the architecture declares fixed."""
        copied = [] if self.reference is None else list(self.reference.branch.backbone.model.parameters())
        return [*copied, *(p for p in self.whole.backbone.model.parameters() if not p.requires_grad)]

    def save(self, folder: Path) -> None:
        """The model as transformers saves it."""
        save_model(self.whole.backbone.model, folder)
