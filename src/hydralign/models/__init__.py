"""Language models as policies: loading and making, heads, forms (full, LoRA, hydra), log-probabilities, saving."""

from hydralign.models.folders.from_scratch import make_model, train_tokenizer
from hydralign.models.folders.loading import load_model
from hydralign.models.forms.build import load_policy, make_policy
from hydralign.models.policy import Policy

__all__ = [
    "Policy",
    "load_model",
    "load_policy",
    "make_model",
    "make_policy",
    "train_tokenizer",
]
