"""The frozen part of an encoder–decoder: the encoder, and the decoder's lowest layers where a branch sits on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hydralign.models.backbones.slicing import capture_output, layers_of, slice_layers
from hydralign.models.backbones.trunk import CausalTrunkCollector, CausalTrunkStates
from hydralign.types import TokenBatch, TrunkStates, TrunkUse

if TYPE_CHECKING:
    from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone


@dataclass(frozen=True)
class EncoderDecoderStates:
    """States of a batch: the encoder's of each prompt, and those that the cut through the decoder hands on."""

    encoder: CausalTrunkStates
    decoder: CausalTrunkStates | None
    """None where the whole decoder is trained."""

    @property
    def encoder_BQD(self) -> Tensor:
        """fp32."""
        return self.encoder.states_BTD.float()

    @property
    def decoder_BRD(self) -> Tensor:
        """fp32; the state at position t is of what stands before response token t."""
        assert self.decoder is not None, "a branch reads trunk states"
        return self.decoder.states_BTD.float()

    def select(self, index_B: Tensor, device: torch.device) -> EncoderDecoderStates:
        """Of these rows only, on this device. `index_B` lies on the CPU."""
        decoder = None if self.decoder is None else self.decoder.select(index_B, device)
        return EncoderDecoderStates(self.encoder.select(index_B, device), decoder)


class EncoderDecoderCollector:
    """Puts the states of a batch together out of those of a few rows at a time."""

    def __init__(self, rows: int) -> None:
        self._encoder, self._decoder = CausalTrunkCollector(rows), CausalTrunkCollector(rows)

    def add(self, index_B: Tensor, part: TrunkStates) -> None:
        """Place the states of the rows `index_B`."""
        assert isinstance(part, EncoderDecoderStates), "states of another kind of backbone"
        self._encoder.add(index_B, part.encoder)
        if part.decoder is not None:
            self._decoder.add(index_B, part.decoder)

    def states(self) -> EncoderDecoderStates:
        """The states of all rows."""
        decoder = None if self._decoder.states_BTD is None else self._decoder.states()
        return EncoderDecoderStates(self._encoder.states(), decoder)


class EncoderDecoderTrunk:
    """The encoder and the lowest `layers` decoder layers, and a count of every position that crossed them.

    With the start token, the decoder reads as many positions as a response has tokens.
    """

    def __init__(
        self,
        backbone: EncoderDecoderBackbone,
        layers: int,
        *,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> None:
        """Kept states have this dtype; with `offload` they lie on the CPU."""
        self._backbone, self.dtype, self.offload = backbone, dtype, offload
        self.body = slice_layers(backbone.decoder, 0, layers) if layers else None
        self.last = None if self.body is None else layers_of(self.body)[-1]
        self.use = TrunkUse()

    def count(self, real: int, pad: int) -> None:
        """Add positions that went through."""
        self.use = TrunkUse(self.use.real + real, self.use.pad + pad)

    def count_rows(self, lengths_B: Tensor, columns: int) -> None:
        """Add rows of these lengths, padded to so many columns."""
        real = int(lengths_B.sum())
        self.count(real, len(lengths_B) * columns - real)

    def stored(self, states_BTD: Tensor) -> Tensor:
        """States in the dtype and place in which a rollout carries them."""
        return states_BTD.to(torch.device("cpu") if self.offload else states_BTD.device, self.dtype)

    def collector(self, rows: int) -> EncoderDecoderCollector:
        """Puts the states of so many rows together."""
        return EncoderDecoderCollector(rows)

    @torch.no_grad()
    def states(self, batch: TokenBatch) -> EncoderDecoderStates:
        """The states of a batch that brings none."""
        backbone = self._backbone
        with backbone.autocast():
            encoder_BQD = backbone.encode(batch.prompt_BQ, batch.prompt_lengths_B)
            self.count_rows(batch.prompt_lengths_B, encoder_BQD.shape[1])
            encoder = CausalTrunkStates(self.stored(encoder_BQD), batch.prompt_lengths_B)
            if self.last is None:
                return EncoderDecoderStates(encoder, None)
            inputs_BRD = backbone.embed(backbone.decoder_input(batch))
            with capture_output(self.last) as seen:
                backbone.read(self.body, inputs_BRD, encoder_BQD, batch.prompt_lengths_B)
        self.count_rows(batch.response_lengths_B, batch.width)
        return EncoderDecoderStates(encoder, CausalTrunkStates(self.stored(seen[0]), batch.response_lengths_B))
