"""The in-process sampler: batched decoding with randomness that no batching can change."""

from hydralign.generation.fake import ScriptedSampler
from hydralign.generation.keyed import keyed_uniforms
from hydralign.generation.sampler import Sampler, sample

__all__ = ["Sampler", "ScriptedSampler", "keyed_uniforms", "sample"]
