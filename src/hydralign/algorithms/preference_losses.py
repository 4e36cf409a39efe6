"""Losses on pairs of answers of which one was preferred (Bradley and Terry 1952; Stiennon et al. 2020, section 3.4).

Takes one score per answer, read wherever the model reads it; knows no tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def pairwise_logistic_loss(
    chosen_B: Tensor, rejected_B: Tensor, *, count: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ −log σ(chosen − rejected) ÷ `count` pairs, by default the pairs given here; 0 for no pairs.

    Give the `count` of the whole optimizer step when it is cut into micro-batches or processes.

    Stats are detached sums over pairs; add them up, then divide once by the number of pairs: `wins` (a tie is half a
    win, so `wins` ÷ pairs is the accuracy and a constant scorer has 0.5), `ties`, and the `margin` chosen − rejected.
    """
    margin_B = chosen_B - rejected_B
    loss = -logsigmoid(margin_B).sum() / max(len(margin_B) if count is None else count, 1)
    ties = (margin_B == 0).to(margin_B.dtype).sum()
    wins = (margin_B > 0).to(margin_B.dtype).sum() + ties / 2
    return loss, {"wins": wins, "ties": ties, "margin": margin_B.detach().sum()}
