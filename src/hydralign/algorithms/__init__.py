"""The equations of preference learning as pure functions on tensors.

Nothing here knows a model, a config, a device, a tracker or a source of randomness. Hyperparameters are
keyword-only; losses return `(loss, stats)`.

    masked.py             masked sums, moments, whitening; the two denominators of a loss
    kl.py                 per-token KL estimates and the adaptive coefficient
    rewards.py            score and KL penalty, token by token
    advantages.py         generalised advantage estimation; answers against others to the same prompt
    policy_losses.py      PPO's clipped objective
    value_losses.py       PPO's clipped value error
    preference_losses.py  the pairwise logistic loss of reward models

Rules that hold in every function:
- Masks are bool, True = counts. Masked entries are replaced before any arithmetic, so what stands there (NaN and
  infinity included) changes no result and gets a gradient of exactly 0. Returned `_BR` tensors are 0 there.
- A denominator is an argument (`count`): the number of tokens or rows of a whole optimizer step. Losses and
  gradients of micro-batches and processes then simply add up.
- `stats` are detached *sums* over the unmasked entries. Add them over micro-batches and processes, then divide once.

Shape letters: `B` rows, `R` response tokens (legend in `hydralign.types`).
"""
