"""Where each part of a reward lands: the KL penalty on every token, the score on the last real one.

Does not scale, clip or whiten scores. Follows Ziegler et al. 2019 (equation 2, KL taken per token), but puts the
score on the answer's last real token and not on the padding slot after the end-of-sequence token:

    tokens    the   film   rocks   <eos>   pad    pad
    mask       1     1      1       1       0      0
    reward   -β·k  -β·k   -β·k   score-β·k  0      0
"""

from __future__ import annotations

from torch import Tensor

from hydralign.algorithms.masked import zero_masked


def token_rewards(
    scores_B: Tensor, kl_BR: Tensor, mask_BR: Tensor, *, coefficient: float, token_scores_BR: Tensor | None = None
) -> Tensor:
    """−coefficient·kl per token, plus the row's score on its last real token, plus dense scores where given.

    The end-of-sequence token is a real token: an answer that ended itself has its score there, a truncated one on
    its last token. A row without any real token has no place for its score, which is dropped: no action was taken
    that could be credited. Result in the dtype of `kl_BR`, 0 outside the mask.
    """
    kept_from_here_BR = mask_BR.flip(-1).cumsum(-1).flip(-1)
    last_BR = mask_BR & (kept_from_here_BR == 1)
    rewards_BR = zero_masked(scores_B.to(kl_BR.dtype)[:, None], last_BR) - coefficient * zero_masked(kl_BR, mask_BR)
    if token_scores_BR is None:
        return rewards_BR
    return rewards_BR + zero_masked(token_scores_BR.to(kl_BR.dtype), mask_BR)
