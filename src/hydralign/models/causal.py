"""A transformers causal model seen as body and output head: evaluating rows and decoding new ones.

Rows are read right-padded without an attention mask: a causal model's real positions never look right, so
the mask would only cost time, and positions count from 0 as in pre-training. Decoding needs aligned last
columns, so prompts are left-padded there, with a mask and explicit positions.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hydralign.errors import ModelError
from hydralign.models.heads import OutputHead, ValueHead
from hydralign.models.logprobs import token_logprobs
from hydralign.models.policy import Evaluation
from hydralign.types import Rows


class CausalModel:
    """Body, head and precision of one causal language model. Holds no trained state of its own."""

    def __init__(self, model: Any, *, precision: str = "fp32") -> None:
        self.model = model
        self.body = model.base_model
        self.head = OutputHead(model)
        self.vocabulary = int(self.head.linear.weight.shape[0])
        self.precision = precision
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.head.linear.weight.device

    def autocast(self) -> torch.autocast:
        """bf16 matrix products in bf16 mode, nothing in fp32 mode."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Input states_BTD. Passing states instead of ids also spares transformers' own search for pad ids."""
        return self.model.get_input_embeddings()(tokens_BT)

    def final_states(self, rows: Rows) -> Tensor:
        """hidden_ND after the final norm, at the position before each real response token, row by row."""
        with self.autocast():
            hidden_BTD = self.body(inputs_embeds=self.embed(rows.tokens_BT), use_cache=False).last_hidden_state
        before_BR = rows.response_columns_BR - 1
        row_B1 = torch.arange(len(rows), device=hidden_BTD.device)[:, None]
        mask_BR = rows.mask_BR
        return hidden_BTD[row_B1.expand_as(before_BR)[mask_BR], before_BR[mask_BR]]

    def logprobs(
        self,
        hidden_ND: Tensor,
        rows: Rows,
        stop_ids: tuple[int, ...],
        *,
        entropy: bool = True,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the real response tokens of `rows`, row by row."""
        mask_BR = rows.mask_BR
        position_BR = torch.arange(rows.width, device=mask_BR.device).expand_as(mask_BR)
        with self.autocast():
            return token_logprobs(
                hidden_ND,
                rows.response_BR[mask_BR],
                (position_BR < rows.min_new_tokens)[mask_BR],
                head=self.head,
                vocabulary=self.vocabulary,
                temperature=rows.temperature,
                stop_ids=stop_ids if rows.min_new_tokens else (),
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )

    def evaluate(
        self, rows: Rows, value_head: ValueHead, stop_ids: tuple[int, ...], *, entropy_gradient: bool = False
    ) -> Evaluation:
        """Log-probabilities, values and entropies of the responses; one pass through body and head."""
        hidden_ND = self.final_states(rows)
        logprobs_N, entropy_N = self.logprobs(hidden_ND, rows, stop_ids, entropy_gradient=entropy_gradient)
        mask_BR = rows.mask_BR
        return Evaluation(*(spread(x_N, mask_BR) for x_N in (logprobs_N, value_head(hidden_ND), entropy_N)))

    def reference(self, rows: Rows, stop_ids: tuple[int, ...]) -> Tensor:
        """logprobs_BR alone, by the same path as `evaluate`."""
        logprobs_N, _ = self.logprobs(self.final_states(rows), rows, stop_ids, entropy=False)
        return spread(logprobs_N, rows.mask_BR)

    def check_readout(self) -> None:
        """Raise ModelError unless body + head reproduce the model's own logits on a short input."""
        ids_BT = torch.arange(2 * 5, device=self.device).view(2, 5) % self.vocabulary
        with torch.no_grad():
            whole = self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits.float()
            ours = self.head(self.body(inputs_embeds=self.embed(ids_BT), use_cache=False).last_hidden_state)
        gap = (whole - ours).abs().max().item()
        if not gap <= 1e-3 * max(1.0, whole.abs().max().item()):
            raise ModelError(
                f"{type(self.model).__name__}: logits from its body and its head differ from its own by {gap:.2g}: "
                "this architecture changes them in a way that is not known here, and every log-probability would be "
                "wrong. Use another architecture, or report this one."
            )


def spread(x_N: Tensor, mask_BR: Tensor) -> Tensor:
    """Numbers of real response tokens, row by row, back in their columns; zero elsewhere."""
    out_BR = torch.zeros(mask_BR.shape, dtype=x_N.dtype, device=x_N.device)
    return out_BR.masked_scatter(mask_BR, x_N)


class CachedDecoding:
    """Decoding with a key-value cache; the value is read from the state that the logits come from."""

    def __init__(
        self, causal: CausalModel, value_head: ValueHead, prompt_ids: list[tuple[int, ...]], new_tokens: int
    ) -> None:
        self.causal, self.value_head = causal, value_head
        device = causal.device
        lengths = torch.tensor([len(ids) for ids in prompt_ids])
        columns = int(lengths.max())
        tokens_BQ = torch.zeros(len(prompt_ids), columns, dtype=torch.long)
        for row, ids in enumerate(prompt_ids):
            tokens_BQ[row, columns - len(ids) :] = torch.tensor(ids)
        mask_BQ = torch.arange(columns) >= columns - lengths[:, None]
        # With equal prompt lengths there is nothing to mask, and attention takes its faster path.
        self.padded = not bool(mask_BQ.all())
        room = torch.ones(len(prompt_ids), new_tokens, dtype=torch.bool)
        self.mask_BT = torch.cat([mask_BQ, room], dim=1).to(device)
        self.next_position_B = lengths.to(device)
        self.columns = columns
        self.cache = DynamicCache(config=causal.model.config)
        positions_BQ = (mask_BQ.cumsum(1) - 1).clamp(min=0).to(device)
        self.hidden_BD = self._forward(tokens_BQ.to(device), positions_BQ)

    def _forward(self, tokens_BC: Tensor, positions_BC: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"position_ids": positions_BC} if self.causal.takes_positions else {}
        if self.padded:
            inputs["attention_mask"] = self.mask_BT[:, : self.columns]
        with self.causal.autocast():
            states_BCD = self.causal.body(
                inputs_embeds=self.causal.embed(tokens_BC), past_key_values=self.cache, use_cache=True, **inputs
            ).last_hidden_state
        return states_BCD[:, -1]

    def predict(self) -> tuple[Tensor, Tensor]:
        """(logits_BV, values_B) of the next position, fp32."""
        with self.causal.autocast():
            return self.causal.head(self.hidden_BD), self.value_head(self.hidden_BD)

    def append(self, tokens_B: Tensor) -> None:
        """Run one token per row through the body."""
        self.columns += 1
        self.hidden_BD = self._forward(tokens_B[:, None], self.next_position_B[:, None])
        self.next_position_B = self.next_position_B + 1

    def keep(self, index_B: Tensor) -> None:
        """Drop all other rows from cache, mask and state."""
        self.cache.batch_select_indices(index_B)
        self.mask_BT = self.mask_BT[index_B]
        self.next_position_B = self.next_position_B[index_B]
        self.hidden_BD = self.hidden_BD[index_B]
