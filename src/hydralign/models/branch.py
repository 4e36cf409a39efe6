"""A branch: a backbone, whole or cut, with the token head that sits on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hydralign.models.backbones.backbone import Backbone
from hydralign.models.heads.token import TokenHead
from hydralign.models.kernels.logprobs import token_logprobs
from hydralign.types import TokenBatch


class Branch:
    """Log-probabilities of responses, and of texts packed in rows, by one backbone and its token head."""

    def __init__(self, backbone: Backbone, *, absent_ids: Sequence[int] = ()) -> None:
        """Absent tokens have probability 0."""
        self.backbone = backbone
        self.head = TokenHead(backbone.model, absent_ids=absent_ids, state_scale=backbone.state_scale)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.head.vocabulary

    def read_tokens(
        self, hidden_ND: Tensor, batch: TokenBatch, *, entropy: bool = True, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of the real response tokens, row by row, from the states that predict them."""
        row_N, position_N = batch.response_index
        with self.backbone.autocast():
            return token_logprobs(
                hidden_ND,
                batch.response_BR[row_N, position_N],
                position_N < batch.min_new_tokens,
                head=self.head,
                temperature=batch.temperature,
                stop_ids=batch.stop_ids if batch.min_new_tokens else (),
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """logprobs_BR alone, by the same path as a policy's."""
        return batch.scatter(self.read_tokens(self.backbone.hidden(batch), batch, entropy=False)[0])

    def packed_logprobs(self, tokens_BT: Tensor, positions_BT: Tensor | None, learned_BT: Tensor) -> Tensor:
        """logprobs_N, in nats, of the tokens that are True in `learned_BT`, row by row; none in the first column.

        Several texts may share a row; `positions_BT` then begin anew with each.
        """
        learned_BT = learned_BT[:, 1:]  # the state at t predicts the token at t + 1
        with self.backbone.autocast():
            hidden_ND = self.backbone.packed_states(tokens_BT, positions_BT)[:, :-1][learned_BT]
            logprobs_N, _ = token_logprobs(
                hidden_ND,
                tokens_BT[:, 1:][learned_BT],
                torch.zeros(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device),
                head=self.head,
                temperature=1.0,
                stop_ids=(),
                entropy=False,
            )
        return logprobs_N
