"""The frozen bottom of a causal model: embeddings and lowest layers, whose states all heads start from."""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.slicing import capture_output, layers_of, slice_layers
from hydralign.types import TokenBatch, TrunkUse


class Trunk:
    """The lowest `layers` layers of a model, and a count of every position that crossed them."""

    def __init__(
        self, causal: CausalModel, layers: int, *, dtype: torch.dtype = torch.float32, offload: bool = False
    ) -> None:
        """Kept states have this dtype; with `offload` they lie on the CPU."""
        self.causal, self.dtype, self.offload = causal, dtype, offload
        self.body = slice_layers(causal.body, 0, layers)
        self.last = layers_of(self.body)[-1]
        self.use = TrunkUse()

    def count(self, real: int, pad: int) -> None:
        """Add positions that went through."""
        self.use = TrunkUse(self.use.real + real, self.use.pad + pad)

    def stored(self, states_BTD: Tensor) -> Tensor:
        """States in the dtype and place in which a rollout carries them."""
        return states_BTD.to(torch.device("cpu") if self.offload else states_BTD.device, self.dtype)

    @torch.no_grad()
    def states(self, rows: TokenBatch) -> Tensor:
        """trunk_BTD of rows that bring none."""
        with self.causal.autocast(), capture_output(self.last) as seen:
            self.body(inputs_embeds=self.causal.embed(rows.tokens_BT), use_cache=False)
        real = int(rows.lengths_B.sum())
        self.count(real, rows.tokens_BT.numel() - real)
        return self.stored(seen[0])
