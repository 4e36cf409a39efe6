"""Whether texts that share a row see each other, found out on the model itself before any of it is trained.

Final states are compared, in fp32 whatever the precision of training: a loss would hide most of a leak behind the
output head, and bf16 would hide the rest behind its rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hydralign.errors import ModelError
from hydralign.models.backbones.slicing import named_architecture_errors
from hydralign.models.policy import Policy
from hydralign.models.precision import held_in_fp32

LENGTHS = (7, 11, 5)
"""Tokens of the texts that share a row."""
ROUNDING = 1e-5
"""How far rounding takes equal states apart, as a share of the largest."""


@torch.no_grad()
def require_apart(policy: Policy) -> None:
    """Raise ModelError unless texts in one row have the states that each has alone, whatever stands beside them.

    Attention, convolutions or recurrent states that leak are silent: the loss only looks a little better than it is.
    """
    kind = type(policy.model).__name__
    way_out = "Set sft.packing: false, which gives every demonstration a row of its own."
    if not policy.branch.backbone.takes_positions:
        raise ModelError(
            f"{kind} takes no positions, so it lets demonstrations that share a row see each other: none could be "
            f"learned by itself. {way_out}"
        )
    named = named_architecture_errors(
        f"{kind} cannot read several demonstrations in one row",
        f"positions that begin anew are not understood. {way_out}",
    )
    with named, held_in_fp32(policy.model):
        leak, gap, scale = packing_gaps(policy)
    if not max(leak, gap) <= ROUNDING * max(1.0, scale):
        raise ModelError(
            f"{kind} lets demonstrations that share a row see each other (another text beside a text changes its "
            f"states by {leak:.2g}, and packing by {gap:.2g}, where the largest is {scale:.2g}): each would be learned "
            f"as if it followed from the others. {way_out}"
        )


def packing_gaps(policy: Policy) -> tuple[float, float, float]:
    """(largest change of a text's states when another text of its row is exchanged, largest difference between its
    states in the row and alone, largest state).
    """
    vocabulary, lengths = policy.branch.vocabulary, [min(length, policy.context) for length in LENGTHS]
    texts = [torch.arange(length) + start for length, start in zip(lengths, (2, 5, 40), strict=True)]
    others = [text + vocabulary // 2 for text in texts]
    # The first row as it is, then one row for each text that is exchanged.
    rows = [texts, *([*texts[:n], others[n], *texts[n + 1 :]] for n in range(len(texts)))]
    tokens_BT = torch.stack([torch.cat(row) for row in rows]) % vocabulary
    positions_BT = torch.cat([torch.arange(length) for length in lengths]).expand_as(tokens_BT)
    states_BTD = _states(policy, tokens_BT, positions_BT)
    text_T = torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths)).to(policy.device)
    changes = [(states_BTD[n + 1] - states_BTD[0])[text_T != n] for n in range(len(texts))]
    alone_TD = torch.cat([_states(policy, text[None] % vocabulary)[0] for text in texts])
    leak, gap = torch.cat(changes).abs().max(), (alone_TD - states_BTD[0]).abs().max()
    return float(leak), float(gap), float(states_BTD.abs().max())


def _states(policy: Policy, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
    positions_BT = None if positions_BT is None else positions_BT.to(policy.device)
    return policy.branch.backbone.packed_states(tokens_BT.to(policy.device), positions_BT)
