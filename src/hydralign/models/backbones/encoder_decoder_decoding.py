"""Decoding with an encoder: each prompt is read once, then one token a step with caches for both kinds of attention.

All rows begin with the start token in column 0, so nothing is padded on the decoder's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hydralign.models.backbones.encoder_decoder_trunk import EncoderDecoderStates, EncoderDecoderTrunk
from hydralign.models.backbones.slicing import capture_output, layers_of
from hydralign.models.backbones.trunk import CausalTrunkStates
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels.cache import RoomyCache
from hydralign.models.kernels.few_states import PACKED_FROM
from hydralign.models.versions import DynamicCache, EncoderDecoderCache

if TYPE_CHECKING:
    from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone


class EncoderDecoderDecoding:
    """A batch in the middle of being sampled."""

    def __init__(
        self,
        backbone: EncoderDecoderBackbone,
        head: TokenHead,
        prompt_ids: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        trunk: EncoderDecoderTrunk | None = None,
    ) -> None:
        self.backbone, self.head, self.trunk = backbone, head, trunk
        if new_tokens >= PACKED_FROM:
            self.head.product.pack()
        device = backbone.device
        self.prompt_lengths_B = torch.tensor([len(ids) for ids in prompt_ids])
        rows, columns = len(prompt_ids), int(self.prompt_lengths_B.max())
        prompt_BQ = torch.tensor([[*ids, *[0] * (columns - len(ids))] for ids in prompt_ids], device=device)
        with backbone.autocast():
            self.encoder_BQD = backbone.encode(prompt_BQ, self.prompt_lengths_B)
        self.lengths_B = self.prompt_lengths_B
        self.place_B = torch.arange(rows, device=device)
        layers = len(layers_of(backbone.decoder))
        self.cache = EncoderDecoderCache(RoomyCache(layers, new_tokens), DynamicCache())
        self.kept: tuple[Tensor, Tensor | None] | None = None
        if trunk is not None:
            trunk.count_rows(self.prompt_lengths_B, columns)
            decoder_BRD = None
            if trunk.last is not None:
                width = self.encoder_BQD.shape[2]
                decoder_BRD = self.encoder_BQD.new_zeros(rows, new_tokens, width, dtype=trunk.dtype)
            self.kept = (trunk.stored(self.encoder_BQD), decoder_BRD)
        self.position = self.positions_read = 0
        self._read(torch.full((rows,), backbone.start_id, device=device))

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, hidden_BD) of the next position: raw fp32 logits, and the states that they come from."""
        with self.backbone.autocast():
            return self.head(self.hidden_BD), self.hidden_BD

    def append(self, tokens_B: Tensor, real: int) -> None:
        """Run one token per row through the decoder. Which of them were read for nothing is known at the end."""
        self._read(tokens_B)

    def finish(self, tokens_B: Tensor, real: int) -> None:
        """Nothing: the decoder never reads the last token of an answer."""

    def keep(self, index_B: Tensor) -> None:
        """Drop all other rows from caches and states; `index_B` rises."""
        self.cache.batch_select_indices(index_B)
        self.encoder_BQD = self.encoder_BQD[index_B]
        self.hidden_BD: Tensor = self.hidden_BD[index_B]
        self.lengths_B, self.place_B = self.lengths_B[index_B.cpu()], self.place_B[index_B]

    def trunk_states(self, lengths_B: Tensor) -> EncoderDecoderStates | None:
        """The trunk's states of all rows of the beginning, with so many real tokens each; None without a trunk."""
        if self.trunk is None or self.kept is None:
            return None
        encoder_BQD, decoder_BRD = self.kept
        encoder, answered_B = CausalTrunkStates(encoder_BQD, self.prompt_lengths_B), lengths_B - self.prompt_lengths_B
        if decoder_BRD is None:
            return EncoderDecoderStates(encoder, None)
        # An answer's last token is read while other rows go on, and its state belongs to nothing: real positions are
        # as many as answers have tokens.
        real = int(answered_B.sum())
        self.trunk.count(real, self.positions_read - real)
        states_BRD = self.trunk.stored(decoder_BRD[:, : int(answered_B.max())])
        return EncoderDecoderStates(encoder, CausalTrunkStates(states_BRD, answered_B))

    def _read(self, tokens_B: Tensor) -> None:
        backbone, last = self.backbone, None if self.trunk is None else self.trunk.last
        caught = nullcontext(list[Tensor]()) if last is None else capture_output(last)
        with backbone.autocast(), caught as seen:
            states_B1D = backbone.read(
                backbone.decoder, backbone.embed(tokens_B[:, None]), self.encoder_BQD, self.lengths_B, cache=self.cache
            )
        self.hidden_BD = states_B1D[:, -1]
        if self.trunk is not None and self.kept is not None and self.kept[1] is not None:
            self.positions_read += len(tokens_B)
            self.kept[1][self.place_B, self.position] = seen[0][:, -1].to(self.trunk.dtype)
        self.position += 1
