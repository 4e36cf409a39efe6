"""The frozen bottom of a causal model: embeddings and lowest layers, whose states all heads start from."""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.models.backbones.causal import CausalBackbone, CausalTrunkCollector, CausalTrunkStates, lay_out
from hydralign.models.backbones.slicing import capture_output, layers_of, slice_layers
from hydralign.types import TokenBatch, TrunkUse


class Trunk:
    """The lowest `layers` layers of a model, and a count of every position that crossed them."""

    def __init__(
        self, backbone: CausalBackbone, layers: int, *, dtype: torch.dtype = torch.float32, offload: bool = False
    ) -> None:
        """Kept states have this dtype; with `offload` they lie on the CPU."""
        self.backbone, self.dtype, self.offload = backbone, dtype, offload
        self.body = slice_layers(backbone.body, 0, layers)
        self.last = layers_of(self.body)[-1]
        self.use = TrunkUse()

    def count(self, real: int, pad: int) -> None:
        """Add positions that went through."""
        self.use = TrunkUse(self.use.real + real, self.use.pad + pad)

    def stored(self, states_BTD: Tensor) -> Tensor:
        """States in the dtype and place in which a rollout carries them."""
        return states_BTD.to(torch.device("cpu") if self.offload else states_BTD.device, self.dtype)

    def collector(self, rows: int) -> CausalTrunkCollector:
        """Puts the states of so many rows together."""
        return CausalTrunkCollector(rows)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> CausalTrunkStates:
        """The states of a batch that brings none."""
        tokens_BT = lay_out(batch)
        with self.backbone.autocast(), capture_output(self.last) as seen:
            self.body(inputs_embeds=self.backbone.embed(tokens_BT), use_cache=False)
        real = int(batch.lengths_B.sum())
        self.count(real, tokens_BT.numel() - real)
        return CausalTrunkStates(self.stored(seen[0]), batch.lengths_B)
