"""A transformers causal model, or its top layers, as a backbone: final states at the positions that predict a response.

A row is laid out as prompt, response, padding, without an attention mask: a causal model's real positions never look
right, so the mask would only cost time, and positions count from 0 as in pre-training.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.models.backbones.decoding import CachedDecoding
from hydralign.models.backbones.rope import explain_rope_limit, rope_limit
from hydralign.models.backbones.slicing import check_split, copy_trained, layers_of, replace_input, slice_layers
from hydralign.models.backbones.trunk import CausalTrunk, CausalTrunkStates, lay_out, response_columns
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels import response_only
from hydralign.models.kernels.tied_embedding import look_up
from hydralign.models.outputs import allowed_gap
from hydralign.types import TokenBatch


class CausalBackbone:
    """How one causal model, or the layers above a cut, reads token batches. Holds no trained state of its own."""

    state_scale = 1.0
    alternatives = "gpt2, llama, mistral, qwen2, qwen3, gemma2 or phi3"

    def __init__(
        self, model: Any, *, precision: str = "fp32", body: Any = None, entry: nn.Module | None = None
    ) -> None:
        """`body` takes the place of the model's own; with `entry`, its first layer, it starts from trunk states."""
        self.model = model
        self.body = model.base_model if body is None else body
        self.entry = entry
        self.precision, self.rope_limit = precision, rope_limit(model)
        with self.autocast():
            parts = response_only.position_wise_parts(self.body)
            self.position_wise_parts = response_only.verify_parts(parts, self.body, partial(allowed_gap, precision))
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.get_input_embeddings().weight.device

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Input states_BTD, fp32. Passing states instead of ids also spares transformers' own search for pad ids."""
        return look_up(self.model.get_input_embeddings(), tokens_BT, head=self.model.get_output_embeddings())

    def hidden(self, batch: TokenBatch) -> Tensor:
        """hidden_ND after the final norm, at the position before each real response token, row by row."""
        row_N, column_N = batch.response_index.row_N, response_columns(batch) - 1
        with self.autocast(), response_only.only_at_positions(self.position_wise_parts, row_N, column_N):
            states_BTD = self.states(batch)
        return states_BTD[row_N, column_N]

    def states(self, batch: TokenBatch) -> Tensor:
        """states_BTD after the final norm, at every position of the batch laid out.

        Raises ModelError for rows that are too long to read the same in any batch.
        """
        columns = int(batch.lengths_B.max())
        if self.rope_limit is not None and columns > self.rope_limit:
            raise ModelError(
                f"A row has {columns} tokens, and {type(self.model).__name__} reads at most {self.rope_limit}"
                f"{explain_rope_limit(self.model)}. Shorten prompts or answers."
            )
        if self.entry is None:
            return self.body(inputs_embeds=self.embed(lay_out(batch)), use_cache=False).last_hidden_state
        assert isinstance(batch.trunk, CausalTrunkStates), "a branch reads trunk states"
        trunk_BTD = batch.trunk.states_BTD.float()
        with replace_input(self.entry, trunk_BTD):
            return self.body(inputs_embeds=trunk_BTD, use_cache=False).last_hidden_state

    def own_logits(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(logits_BTV that the model itself gives, states_BTD that are read here)."""
        logits_BTV = self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits.float()
        return logits_BTV, self.packed_states(ids_BT)

    def check_cut(self, top: int) -> int:
        """See `slicing.check_split`."""
        return check_split(self.model, top)

    def packed_states(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """states_BTD of rows in which several texts may stand side by side, each with positions that begin anew."""
        inputs = {} if positions_BT is None else {"position_ids": positions_BT}
        return self.body(inputs_embeds=self.embed(tokens_BT), use_cache=False, **inputs).last_hidden_state

    def trunk(self, layers: int, *, dtype: torch.dtype = torch.float32, offload: bool = False) -> CausalTrunk:
        """The lowest `layers` layers, whose states are stored in this dtype, on the CPU with `offload`."""
        return CausalTrunk(self, layers, dtype=dtype, offload=offload)

    def top(self, first: int) -> CausalBackbone:
        """The layers from `first` on, which read trunk states."""
        return self._above_cut(slice_layers(self.body, first, len(layers_of(self.body))))

    def with_own_weights(self) -> CausalBackbone:
        """The same layers above a cut, with copies of what is trained in them."""
        return self._above_cut(copy_trained(self.body))

    def _above_cut(self, body: Any) -> CausalBackbone:
        return CausalBackbone(self.model, precision=self.precision, body=body, entry=layers_of(body)[0])

    def start(
        self, head: TokenHead, prompt_ids: Sequence[Sequence[int]], new_tokens: int, *, trunk: CausalTrunk | None = None
    ) -> CachedDecoding:
        """Begin sampling up to `new_tokens` tokens after each prompt; a `trunk`'s states are kept on the way."""
        return CachedDecoding(self, head, prompt_ids, new_tokens, trunk=trunk)
