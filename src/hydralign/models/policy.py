"""A language model that is trained, or only sampled: its log-probabilities, values, sampling and frozen reference.

One class for all uses: what is trained is its form's business (`forms/`), how the architecture reads a batch its
backbone's. Every log-probability is that of softmax(logits / temperature) with the stop tokens masked below the row's
minimum length, in every pass alike (`kernels/logprobs.apply_temperature_and_min_length`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hydralign.errors import ModelError
from hydralign.models.backbones.backbone import Backbone, Decoding, Trunk
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.branch import Branch
from hydralign.models.folders.adapters import save_adapter
from hydralign.models.folders.loading import context_of, stop_ids_of
from hydralign.models.folders.saving import model_folder, save_model, save_value_branch, save_value_head
from hydralign.models.folders.weights import embedding_rows
from hydralign.models.heads.value import Critic
from hydralign.types import PolicyOutput, TokenBatch

MakeBackbone = Callable[[Any], Backbone]
"""Reads a transformers model as its architecture is read."""


class Reference(Protocol):
    """A frozen model that the policy is held near."""

    def logprobs(self, batch: TokenBatch) -> Tensor:
        """ref_logprobs_BR, without gradient, by the same path as the policy's own."""


class BranchReference:
    """A frozen branch as a reference; `around` puts its weights in place where it shares them with the policy."""

    def __init__(self, branch: Branch, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.branch, self._around = branch, around

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch) -> Tensor:
        """ref_logprobs_BR."""
        with self._around():
            return self.branch.logprobs(batch)


@dataclass(frozen=True)
class ModelForm:
    """What is trained of a model, and what its frozen reference is."""

    module: Any
    """The whole model, in PEFT's wrapping where adapters are trained."""
    branch: Branch
    """What is evaluated: the whole model, or the layers above a trunk."""
    whole: Branch
    """What is sampled from: trunk and branch in one."""
    trunk: Trunk | None = None
    """What policy, value and reference share, frozen; None when they share nothing."""
    reference: BranchReference | None = None
    reference_weights: Sequence[Tensor] = ()
    """Those that the reference does not share with the model."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that an optimizer updates, by stable name; tied ones once."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def frozen(self) -> list[Tensor]:
        """The parameters that nothing updates, the reference's included, each once."""
        held = [*self.module.parameters(), *self.reference_weights]
        return list({id(p): p for p in held if not p.requires_grad}.values())

    def save(self, folder: Path) -> None:
        """Write the model as transformers saves it, or its adapters as PEFT does, into a folder that is there."""
        if self.module is self.whole.backbone.model:
            save_model(self.module, folder)
        else:
            save_adapter(self.module, folder)


class Policy:
    """A model in one of its forms, with a critic where values are wanted and a reference where KL is."""

    def __init__(
        self,
        form: ModelForm,
        tokenizer: Any,
        *,
        critic: Critic | None = None,
        reference: Reference | None = None,
    ) -> None:
        """`reference` None takes the form's own, which may be None too. `stop_ids`, the tokens that end an answer, may
        be replaced.
        """
        self.form, self.tokenizer, self.critic = form, tokenizer, critic
        self.reference = reference or form.reference
        self.branch, self.whole, self.trunk = form.branch, form.whole, form.trunk
        self.stop_ids = stop_ids_of(self.model, tokenizer)
        self.precision = form.branch.backbone.precision
        self.context, self.context_note = context_of(self.model), explain_rope_limit(self.model)
        self.vocabulary = embedding_rows(self.model.config)

    @property
    def model(self) -> Any:
        """The whole transformers model."""
        return self.whole.backbone.model

    @property
    def device(self) -> torch.device:
        """Where its batches must lie."""
        return self.whole.backbone.device

    @property
    def samples_values(self) -> bool:
        """Whether values can be read from the very states that tokens are sampled from."""
        return self.critic is not None and self.critic.backbone is None

    def evaluate(self, batch: TokenBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities, entropies, and values where there is a critic, with gradient where grad mode is on.

        A batch that brings trunk states spares the trunk. A trained embedding that is tied to the head has its whole
        gradient after `backward()`; `torch.autograd.grad` on it is refused (`kernels/tied_embedding.py`).
        """
        batch = self._with_trunk(batch)
        hidden_ND = self.branch.backbone.hidden(batch)
        numbers = [*self.branch.read_tokens(hidden_ND, batch, entropy_gradient=entropy_gradient)]
        if self.critic is not None:
            numbers.append(self.critic.values(batch, hidden_ND))
        return PolicyOutput(*map(batch.scatter, numbers))

    def read_values(self, batch: TokenBatch) -> Tensor:
        """values_BR alone, those of `evaluate` to the bit, without the output head's work."""
        if self.critic is None:
            raise ModelError("the policy has no critic, so it has no values. Load it with critic=True.")
        batch = self._with_trunk(batch)
        own = self.critic.backbone is None
        return batch.scatter(self.critic.values(batch, self.branch.backbone.hidden(batch) if own else None))

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """ref_logprobs_BR of the policy's reference; no gradient."""
        if self.reference is None:
            raise ModelError(
                "the policy has no reference, so there is no KL to hold it near anything. Load it with load_policy, or "
                "hand a reference in: collect(..., reference=...)."
            )
        return self.reference.logprobs(self._with_trunk(batch))

    def _with_trunk(self, batch: TokenBatch) -> TokenBatch:
        return batch if self.trunk is None or batch.trunk is not None else batch.with_trunk(self.trunk.states(batch))

    def start(self, prompt_ids: list[tuple[int, ...]], new_tokens: int) -> Decoding:
        """Begin sampling up to `new_tokens` tokens after each prompt; trunk states are kept on the way."""
        return self.whole.backbone.start(self.whole.head, prompt_ids, new_tokens, trunk=self.trunk)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that an optimizer updates, the critic's included, by stable name."""
        return self.form.trained() | ({} if self.critic is None else self.critic.trained())

    def frozen(self) -> list[Tensor]:
        """The parameters that nothing updates, the reference's included, each once."""
        return self.form.frozen()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write an ordinary transformers (or PEFT) folder with its tokenizer; values lie in files of their own."""
        with model_folder(folder) as partial:
            self.form.save(partial)
            self.tokenizer.save_pretrained(partial)
            if self.critic is not None:
                save_value_head(partial, self.critic.head)
                if self.critic.backbone is not None:
                    save_value_branch(partial, self.critic.backbone.body)
