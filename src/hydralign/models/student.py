"""A language model in supervised training: its body and head, what is trained, how it is saved.

No value head and no reference: those belong to policies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydralign.config.model import Form, LoraForm
from hydralign.errors import ModelError
from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.slicing import top_layers
from hydralign.models.bf16_speed import concrete_precision
from hydralign.models.folders.loading import context_of, own_tokenizer, prepare_model, stop_ids_of
from hydralign.models.folders.merged import adapter_of, base_of, load_whole
from hydralign.models.folders.saving import model_folder
from hydralign.models.folders.weights import embedding_rows
from hydralign.models.forms.lora import adapt, save_adapter
from hydralign.models.precision import convert_to_fp32, store_frozen_in_bf16


class Student:
    """A causal language model, trained whole (in the hydra form too) or through adapters."""

    def __init__(
        self, model: Any, tokenizer: Any, *, form: Form | None = None, precision: str = "fp32", seed: int = 0
    ) -> None:
        """Takes the model over; `seed` seeds fresh adapters. Raises ModelError when its head is not understood."""
        precision = concrete_precision(precision, model.device)
        prepare_model(convert_to_fp32(model), tokenizer)
        self.tokenizer, self.precision = tokenizer, precision
        self.stop_ids, self.context = stop_ids_of(model, tokenizer), context_of(model)
        self.context_note, self.vocabulary = explain_rope_limit(model), embedding_rows(model.config)
        self._peft: Any = None
        if isinstance(form, LoraForm):
            top = top_layers(model, form.unfrozen_layers) if form.unfrozen_layers else None
            self._peft = adapt(
                model,
                **form.model_dump(exclude={"type", "unfrozen_layers"}),
                seed=seed,
                layers=top,
            )
            if precision == "bf16":
                store_frozen_in_bf16(model)
            prepare_model(model, tokenizer)
        self.causal = CausalModel(model, precision=precision)
        self.causal.check_readout()

    @property
    def device(self) -> torch.device:
        """Where its rows must lie."""
        return self.causal.device

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that an optimizer updates (tied ones once), by stable name."""
        return {name: p for name, p in self._whole.named_parameters() if p.requires_grad}

    def fixed(self) -> list[Tensor]:
        """The parameters that nothing updates."""
        return [p for p in self._whole.parameters() if not p.requires_grad]

    @property
    def _whole(self) -> Any:
        return self._peft or self.causal.model

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write a plain transformers folder, or a PEFT folder that names its base, with the tokenizer."""
        with model_folder(folder) as partial:
            if self._peft:
                save_adapter(self._peft, partial)
            else:
                self.causal.model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)


def load_student(
    path: str | os.PathLike[str],
    *,
    form: Form | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Student:
    """A student from a model folder or hub id, or from an adapter's folder.

    An adapter in `path` is trained further in the LoRA form, which saves an adapter for the same base, and merged into
    its base in the others. Raises ModelError or TokenizerError when it cannot be trained from.
    """
    path = os.path.expanduser(path)
    adapter = adapter_of(path)
    if adapter is not None and isinstance(form, LoraForm):
        if form.adapter is not None:
            raise ModelError(
                f"model.path={path!r} and model.form.adapter={form.adapter!r} are two adapters: which of them is to be "
                "trained further is unclear. Name the base under model.path, or leave form.adapter out."
            )
        form, path = form.model_copy(update={"adapter": path}), base_of(adapter, path)
    own = own_tokenizer(form.adapter) if isinstance(form, LoraForm) else None
    model, tokenizer = load_whole(path, tokenizer=own, pad_token=pad_token, device=device)
    if Path(path).exists():
        # An adapter saved from this model names it; an absolute name is found from any folder.
        model.name_or_path = model.config.name_or_path = str(Path(path).resolve())
    return Student(model, tokenizer, form=form, precision=precision, seed=seed)
