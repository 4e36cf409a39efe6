"""Decoding with a key-value cache, and the harvest of trunk states on the way.

Decoding needs aligned last columns, so prompts are left-padded here, with a mask and explicit positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hydralign.models.backbones.slicing import capture_output
from hydralign.models.backbones.trunk import CausalTrunk, CausalTrunkStates
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels.cache import RoomyCache
from hydralign.models.kernels.few_states import PACKED_FROM
from hydralign.models.kernels.response_only import only_at_positions
from hydralign.models.versions import cache_argument

if TYPE_CHECKING:
    from hydralign.models.backbones.causal import CausalBackbone


class CachedDecoding:
    """A batch in the middle of being sampled.

    With a `trunk`, the states that its last layer hands on are kept for every position that is read.
    """

    def __init__(
        self,
        backbone: CausalBackbone,
        head: TokenHead,
        prompt_ids: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        trunk: CausalTrunk | None = None,
    ) -> None:
        self.backbone, self.head, self.trunk = backbone, head, trunk
        if new_tokens >= PACKED_FROM:
            self.head.product.pack()
        device = backbone.device
        lengths_B = torch.tensor([len(ids) for ids in prompt_ids])
        rows, columns = len(prompt_ids), int(lengths_B.max())
        tokens_BQ = torch.zeros(rows, columns, dtype=torch.long)
        for row, ids in enumerate(prompt_ids):
            tokens_BQ[row, columns - len(ids) :] = torch.tensor(ids)
        mask_BQ = torch.arange(columns) >= columns - lengths_B[:, None]
        # With equal prompt lengths there is nothing to mask, and attention takes its faster path.
        self.padded = not bool(mask_BQ.all())
        self.columns = columns
        self.mask_BT = torch.cat([mask_BQ, torch.ones(rows, new_tokens, dtype=torch.bool)], dim=1).to(device)
        self.next_position_B = lengths_B.to(device)
        self.place_B = torch.arange(rows, device=device)
        self.cache = RoomyCache(backbone.model.config.get_text_config().num_hidden_layers, columns + new_tokens)
        self.harvest_BTD: Tensor | None = None
        positions_BQ = mask_BQ.cumsum(1) - 1
        with only_at_positions(backbone.position_wise_parts, self.place_B, torch.full_like(self.place_B, columns - 1)):
            self.hidden_BD, trunk_BQD = self._forward(tokens_BQ.to(device), positions_BQ.clamp(min=0).to(device))
        if trunk is not None and trunk_BQD is not None:
            real = int(lengths_B.sum())
            trunk.count(real, mask_BQ.numel() - real)
            self.harvest_BTD = trunk_BQD.new_zeros(rows, columns + new_tokens, trunk_BQD.shape[2], dtype=trunk.dtype)
            row_N, column_N = (x.to(device) for x in mask_BQ.nonzero(as_tuple=True))
            self._keep_states(row_N, positions_BQ[mask_BQ].to(device), trunk_BQD[row_N, column_N])

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, hidden_BD) of the next position: raw fp32 logits, and the states that they come from."""
        with self.backbone.autocast():
            return self.head(self.hidden_BD), self.hidden_BD

    def append(self, tokens_B: Tensor, real: int) -> None:
        """Run one token per row through the body; all but `real` of them belong to rows that have ended."""
        self._append(tokens_B, real, self.backbone.body)

    def finish(self, tokens_B: Tensor, real: int) -> None:
        """Read the last tokens of the answers: through the trunk alone, and only if its states are kept."""
        if self.trunk is not None:
            self._append(tokens_B, real, self.trunk.body)

    def keep(self, index_B: Tensor) -> None:
        """Drop all other rows from cache, mask and state; `index_B` rises."""
        self.cache.batch_select_indices(index_B)
        self.mask_BT = self.mask_BT[index_B]
        self.next_position_B = self.next_position_B[index_B]
        self.hidden_BD = self.hidden_BD[index_B]
        self.place_B = self.place_B[index_B]

    def trunk_states(self, lengths_B: Tensor) -> CausalTrunkStates | None:
        """The trunk's states of all rows of the beginning, with so many real tokens each; None without a trunk."""
        if self.trunk is None or self.harvest_BTD is None:
            return None
        return CausalTrunkStates(self.trunk.stored(self.harvest_BTD[:, : int(lengths_B.max())]), lengths_B)

    def _append(self, tokens_B: Tensor, real: int, body: Any) -> None:
        self.columns += 1
        self.hidden_BD, trunk_B1D = self._forward(tokens_B[:, None], self.next_position_B[:, None], body)
        if self.trunk is not None and trunk_B1D is not None:
            self.trunk.count(real, len(tokens_B) - real)
            self._keep_states(self.place_B, self.next_position_B, trunk_B1D[:, 0])
        self.next_position_B = self.next_position_B + 1

    def _forward(self, tokens_BC: Tensor, positions_BC: Tensor, body: Any = None) -> tuple[Tensor, Tensor | None]:
        """(hidden_BD at the last column, trunk_BCD or None)."""
        inputs: dict[str, Any] = {"position_ids": positions_BC} if self.backbone.takes_positions else {}
        if self.padded:
            inputs["attention_mask"] = self.mask_BT[:, : self.columns]
        body = self.backbone.body if body is None else body
        inputs |= cache_argument(body, self.cache)
        caught = nullcontext(list[Tensor]()) if self.trunk is None else capture_output(self.trunk.last)
        with self.backbone.autocast(), caught as seen:
            states_BCD = body(inputs_embeds=self.backbone.embed(tokens_BC), use_cache=True, **inputs).last_hidden_state
        return states_BCD[:, -1], seen[0] if seen else None

    def _keep_states(self, row_N: Tensor, position_N: Tensor, states_ND: Tensor) -> None:
        assert self.harvest_BTD is not None
        self.harvest_BTD[row_N, position_N] = states_ND.to(self.harvest_BTD.dtype)
