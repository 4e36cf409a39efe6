"""Names of transformers and peft whose place or name differs between versions, so that a new version is met here alone.

`tests/test_house.py` holds this: no other module imports from inside those packages.
"""

from __future__ import annotations

import inspect
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

__all__ = [
    "LORA_TARGETS",
    "Conv1D",
    "DynamicCache",
    "DynamicLayer",
    "EncoderDecoderCache",
    "LoraLayer",
    "cache_argument",
]


def cache_argument(body: Any, cache: Any) -> dict[str, Any]:
    """The cache as the keyword argument that this model's `forward` takes.

    transformers 5.24 renamed `past_key_values` to `cache`, and drops the old name later; models of other packages may
    keep it.
    """
    name = "cache" if "cache" in inspect.signature(type(body).forward).parameters else "past_key_values"
    return {name: cache}
