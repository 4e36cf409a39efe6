"""The token head: logits of the next token from a language model's final states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hydralign.errors import ModelError
from hydralign.models.kernels.few_states import FewStates


def absent_ids(tokenizer: Any, vocabulary: int) -> tuple[int, ...]:
    """Ids below `vocabulary` that the tokenizer has no token for: rows that only fill up a padded matrix, and holes."""
    known = set(tokenizer.get_vocab().values())
    return tuple(token for token in range(vocabulary) if token not in known)


class TokenHead:
    """The language-model head of a transformers model, with the logit scaling that its family applies.

    Not a module of its own: the weights stay in the model (tied or not).
    """

    def __init__(self, model: Any, *, absent_ids: Sequence[int] = (), state_scale: float = 1.0) -> None:
        """`absent_ids` are tokens that get the logit minus infinity: those that the tokenizer does not have.
        `state_scale` is what the model multiplies its final states by before they are read.
        """
        config = model.config
        self.absent_ids = torch.tensor(sorted(absent_ids), dtype=torch.long)
        self.linear = model.get_output_embeddings()
        if self.linear is None:
            raise ModelError(
                f"{type(model).__name__} has no output embeddings: it is not a language model that can be sampled. "
                "Name a causal language model (AutoModelForCausalLM), such as one of gpt2, llama, mistral or qwen3."
            )
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.scale = state_scale * float(getattr(config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        self.bias: Tensor | None = getattr(model, "final_logits_bias", None)
        """[1, V], added to the product: BART's, which is no parameter of the layer."""
        self.product = FewStates(self.linear)

    @property
    def vocabulary(self) -> int:
        """V: how many tokens it tells apart."""
        return int(self.linear.weight.shape[0])

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained, so that gradients only pass through."""
        return not any(p.requires_grad for p in self.linear.parameters())

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV, fp32 whatever the precision of the product; minus infinity for absent tokens."""
        return self._without_absent(self.all_logits(hidden_ND), range(self.vocabulary))

    def all_logits(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV as the model itself gives them, those of absent tokens too."""
        return self._shaped(self.product(hidden_ND), range(self.vocabulary))

    def blocks(self, width: int) -> list[range]:
        """The vocabulary in pieces of `width` tokens for `block`; in one piece when the layer is no plain matrix."""
        size = self.vocabulary if not self._plain else width
        return [range(start, min(start + size, self.vocabulary)) for start in range(0, self.vocabulary, size)]

    def block(self, hidden_ND: Tensor, tokens: range) -> Tensor:
        """The logits of these tokens only, of shape [N, tokens]."""
        if len(tokens) == self.vocabulary:
            return self(hidden_ND)
        linear, rows = self.linear, slice(tokens.start, tokens.stop)
        bias = None if linear.bias is None else linear.bias[rows]
        logits_NB = self._shaped(nn.functional.linear(hidden_ND, linear.weight[rows], bias), tokens)
        return self._without_absent(logits_NB, tokens)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of scaling and soft cap, at the logits that they gave."""
        if self.softcap:
            # Minus infinity stands for a token that is absent, and 0 · infinity is no number.
            return (1 - (logits.clamp(min=-self.softcap) / self.softcap).square()) * self.scale
        return self.scale

    def weights(self, tokens: range | Tensor) -> Tensor:
        """The weights that make the logits of these tokens, [tokens, D]."""
        return self.linear.weight[slice(tokens.start, tokens.stop) if isinstance(tokens, range) else tokens]

    def _without_absent(self, logits_NB: Tensor, tokens: range) -> Tensor:
        """The logits of these tokens, absent ones at minus infinity."""
        if not len(self.absent_ids):
            return logits_NB
        inside = (self.absent_ids >= tokens.start) & (self.absent_ids < tokens.stop)
        columns = (self.absent_ids[inside] - tokens.start).to(logits_NB.device)
        return logits_NB.index_fill(1, columns, -math.inf) if len(columns) else logits_NB

    @property
    def _plain(self) -> bool:
        return type(self.linear) is nn.Linear

    def _shaped(self, product_NB: Tensor, tokens: range) -> Tensor:
        logits_NV = product_NB.float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.bias is not None:
            logits_NV = logits_NV + self.bias[:, tokens.start : tokens.stop]
        if self.softcap:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV
