"""A transformers encoder–decoder (T5, BART and their kin), or its top decoder layers, as a backbone.

The encoder reads the prompt, padded on the right and masked. The decoder reads a start token and the response but for
its last token, so that its state at position t predicts response token t, the first one too. Both count positions from
0. States are those that the decoder ends with; what the output head does to them first is the head's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.models.backbones.encoder_decoder_decoding import EncoderDecoderDecoding
from hydralign.models.backbones.encoder_decoder_trunk import EncoderDecoderStates, EncoderDecoderTrunk
from hydralign.models.backbones.position_bias import shared_position_bias
from hydralign.models.backbones.slicing import (
    UNCUT,
    copy_trained,
    layers_of,
    named_architecture_errors,
    replace_input,
    slice_layers,
    top_layers,
)
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels.tied_embedding import look_up
from hydralign.models.outputs import require_finite_outputs
from hydralign.models.versions import cache_argument
from hydralign.types import TokenBatch


class EncoderDecoderBackbone:
    """How one encoder–decoder, or its decoder's layers above a cut, reads token batches."""

    takes_positions = False
    alternatives = "t5 (flan-t5 too), mt5, umt5, bart, mbart, pegasus, marian or led"

    def __init__(
        self,
        model: Any,
        *,
        precision: str = "fp32",
        body: Any = None,
        entry: nn.Module | None = None,
        state_scale: float | None = None,
    ) -> None:
        """`body` takes the place of the whole decoder; with `entry`, its first layer, it starts from trunk states.
        `state_scale` None is found by trying.
        """
        require_one_attention(model)
        self.model, self.precision, self.entry = model, precision, entry
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()
        self.body = self.decoder if body is None else body
        self.start_id = start_token_of(model)
        named = named_architecture_errors(
            f"{type(model).__name__} cannot be read as an encoder and a decoder with one output head",
            "values and log-probabilities start from the states that its decoder ends with. Name an encoder–decoder "
            f"of another architecture, such as {self.alternatives}.",
        )
        with named, self.autocast():
            self.state_scale = scale_before_head(model, self.start_id) if state_scale is None else state_scale

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.get_input_embeddings().weight.device

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def embed(self, tokens_BR: Tensor) -> Tensor:
        """Input states_BRD of the decoder, fp32."""
        return self._look_up(self.decoder, tokens_BR)

    def encode(self, prompt_BQ: Tensor, lengths_B: Tensor) -> Tensor:
        """states_BQD of the encoder, as wide as the longest prompt; padding is masked. Lengths lie on the CPU."""
        prompt_BQ = prompt_BQ[:, : int(lengths_B.max())]
        mask_BQ = encoder_mask(lengths_B, prompt_BQ.shape[1], prompt_BQ.device)
        return self.encoder(
            inputs_embeds=self._look_up(self.encoder, prompt_BQ), attention_mask=mask_BQ
        ).last_hidden_state

    def decoder_input(self, batch: TokenBatch) -> Tensor:
        """tokens_BR that the decoder reads: the start token, then the response without its last token."""
        start_B1 = batch.response_BR.new_full((len(batch), 1), self.start_id)
        return torch.cat([start_B1, batch.response_BR[:, : max(0, batch.width - 1)]], dim=1)[:, : batch.width]

    def hidden(self, batch: TokenBatch) -> Tensor:
        """hidden_ND at the position before each real response token, row by row."""
        with self.autocast():
            return self.states(batch)[tuple(batch.response_index)]

    def states(self, batch: TokenBatch) -> Tensor:
        """states_BRD that the decoder ends with, at every position of the batch."""
        trunk = batch.trunk
        assert isinstance(trunk, EncoderDecoderStates | None), "states of another kind of backbone"
        encoder_BQD = self.encode(batch.prompt_BQ, batch.prompt_lengths_B) if trunk is None else trunk.encoder_BQD
        if self.entry is None:
            return self.read(self.body, self.embed(self.decoder_input(batch)), encoder_BQD, batch.prompt_lengths_B)
        assert trunk is not None, "a branch reads trunk states"
        bias = shared_position_bias(self.decoder, trunk.decoder_BRD.shape[1])
        with replace_input(self.entry, trunk.decoder_BRD, position_bias=bias):
            return self.read(self.body, trunk.decoder_BRD, encoder_BQD, batch.prompt_lengths_B)

    def read(
        self, body: Any, inputs_BRD: Tensor, encoder_BQD: Tensor, prompt_lengths_B: Tensor, cache: Any = None
    ) -> Tensor:
        """states_BRD that a decoder, or a part of one, makes of its inputs and the encoder's states."""
        more = {"use_cache": False} if cache is None else {"use_cache": True, **cache_argument(body, cache)}
        return body(
            inputs_embeds=inputs_BRD,
            encoder_hidden_states=encoder_BQD,
            encoder_attention_mask=encoder_mask(prompt_lengths_B, encoder_BQD.shape[1], encoder_BQD.device),
            **more,
        ).last_hidden_state

    def own_logits(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BTV that the model itself gives, states_BTD that are read here); every second prompt is cut short, so
        that padding is seen through.
        """
        lengths_B = torch.tensor([ids_BT.shape[1] - row % 2 for row in range(len(ids_BT))])
        prompts = [ids[:length] for ids, length in zip(ids_BT.tolist(), lengths_B.tolist(), strict=True)]
        batch = TokenBatch.of(prompts, ids_BT.tolist(), device=ids_BT.device)
        mask_BQ = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long().to(ids_BT.device)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BQ, "decoder_input_ids": self.decoder_input(batch)}
        return self.model(**inputs).logits.float(), self.states(batch)

    def packed_states(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """An encoder–decoder reads texts in pairs: refused with a ModelError."""
        raise ModelError(
            f"{type(self.model).__name__} reads a prompt and an answer apart: texts cannot stand in one row. Give both "
            "in a TokenBatch."
        )

    @torch.no_grad()
    def check_cut(self, top: int) -> int:
        """The number of the first of the `top` decoder layers that can be cut off.

        Raises ModelError unless encoder, lower and upper layers, one after the other, give the whole model's states.
        """
        name = type(self.model).__name__
        layers = top_layers(top, len(layers_of(self.decoder)), name)
        rows = (torch.arange(2 * 12).view(2, 12) % len(self.model.get_input_embeddings().weight)).tolist()
        batch = TokenBatch.of([rows[0], rows[1][:7]], rows, device=self.device)
        why = f"what stands between its decoder's layers is not known here. {UNCUT}"
        with named_architecture_errors(f"{name} cannot be run in two parts", why):
            whole_ND = self.hidden(batch)
            parts_ND = self.top(layers.start).hidden(batch.with_trunk(self.trunk(layers.start).states(batch)))
        gap, scale = float((whole_ND - parts_ND).abs().max()), float(whole_ND.abs().max())
        require_finite_outputs(scale, self.model)
        if not gap <= 1e-5 * max(1.0, scale):
            raise ModelError(
                f"{name} cut below its top {top} decoder layers differs from the whole by {gap:.2g}: its layers share "
                f"more than the states that they hand on, and every log-probability would be wrong. {UNCUT}"
            )
        return layers.start

    def trunk(self, layers: int, *, dtype: torch.dtype = torch.float32, offload: bool = False) -> EncoderDecoderTrunk:
        """The encoder and the decoder's lowest `layers` layers, whose states are stored in this dtype."""
        return EncoderDecoderTrunk(self, layers, dtype=dtype, offload=offload)

    def top(self, first: int) -> EncoderDecoderBackbone:
        """The decoder's layers from `first` on, which read trunk states."""
        return self._above_cut(slice_layers(self.decoder, first, len(layers_of(self.decoder))))

    def with_own_weights(self) -> EncoderDecoderBackbone:
        """The same layers above a cut, with copies of what is trained in them."""
        return self._above_cut(copy_trained(self.body))

    def start(
        self,
        head: TokenHead,
        prompt_ids: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        trunk: EncoderDecoderTrunk | None = None,
    ) -> EncoderDecoderDecoding:
        """Begin sampling up to `new_tokens` tokens for each prompt; a `trunk`'s states are kept on the way."""
        return EncoderDecoderDecoding(self, head, prompt_ids, new_tokens, trunk=trunk)

    def _above_cut(self, body: Any) -> EncoderDecoderBackbone:
        shared: dict[str, Any] = {"precision": self.precision, "state_scale": self.state_scale}
        return EncoderDecoderBackbone(self.model, body=body, entry=layers_of(body)[0], **shared)

    def _look_up(self, stack: Any, tokens_BT: Tensor) -> Tensor:
        return look_up(stack.get_input_embeddings(), tokens_BT, head=self.model.get_output_embeddings())


def encoder_mask(lengths_B: Tensor, columns: int, device: torch.device) -> Tensor | None:
    """mask_BQ, True for real tokens; None where no row is padded, which attention reads faster. Lengths on the CPU."""
    mask_BQ = torch.arange(columns) < lengths_B[:, None]
    return None if bool(mask_BQ.all()) else mask_BQ.to(device, non_blocking=True)


def require_one_attention(model: Any) -> None:
    """Raise ModelError for BigBird's block-sparse attention, which the first short text switches off for good."""
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise ModelError(
            f"{type(model).__name__} has attention_type 'block_sparse': after one short prompt it reads long ones in "
            "another way too, so log-probabilities would depend on what was read before. Set attention_type to "
            "'original_full' in its config.json, which reads every prompt alike."
        )


def start_token_of(model: Any) -> int:
    """The token that a decoder reads first. Raises ModelError where the model names none."""
    generation = getattr(model, "generation_config", None)
    named = (getattr(source, "decoder_start_token_id", None) for source in (model.config, generation))
    fallback = getattr(model.config, "bos_token_id", None)
    start = next((token for token in (*named, fallback) if isinstance(token, int)), None)
    if start is None:
        raise ModelError(
            f"{type(model).__name__} names no decoder_start_token_id: what its decoder reads before the first token of "
            "an answer would be a guess. Set it in its config.json, to the pad token for T5."
        )
    return start


@torch.no_grad()
def scale_before_head(model: Any, start_id: int) -> float:
    """What the model multiplies the decoder's final states by before its output head reads them: T5 may, by a setting
    that has moved between versions and that a saved config may contradict. So it is seen on one token.
    """
    seen: list[Tensor] = []
    handles = [
        model.get_decoder().register_forward_hook(lambda *of: seen.append(of[-1].last_hidden_state)),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
    ]
    ids_11 = torch.tensor([[start_id]], device=model.get_input_embeddings().weight.device)
    try:
        model(input_ids=ids_11, decoder_input_ids=ids_11)
    finally:
        for handle in handles:
            handle.remove()
    given_D, read_D = (states_11D.flatten().double() for states_11D in seen)
    found = float(given_D @ read_D / (given_D @ given_D))
    exact = (1.0, len(given_D) ** -0.5)
    return next((scale for scale in exact if abs(found / scale - 1) < 1e-3), found)
