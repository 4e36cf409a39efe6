"""How a recipe says that answers are sampled, as the sampler's plain arguments."""

from __future__ import annotations

from hydralign.config.ppo import SamplingConfig
from hydralign.types import SamplingParams


def sampling_params(config: SamplingConfig, seed: int) -> SamplingParams:
    """The sampler's plain arguments out of a recipe's section."""
    return SamplingParams(
        temperature=config.temperature,
        min_new_tokens=config.min_new_tokens,
        max_new_tokens=config.max_new_tokens,
        lengths=(config.lengths.low, config.lengths.high) if config.lengths else None,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=seed,
        decode_batch_size=config.decode_batch_size,
    )
