"""Load a trained PEFT adapter into its base model, to be trained further or to be merged; save one.

Only adapters that change weights inside the model are understood: LoRA and its variants, IA³ and their like, with
trained biases, whole trained modules (`modules_to_save`) or trained token embeddings. Adapters that add inputs
(prompt tuning, prefix tuning) are refused, because the body is read without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor

from hydralign.errors import ModelError, first_line
from hydralign.micro_batches import is_out_of_memory
from hydralign.models.folders.load_errors import named_load_errors
from hydralign.models.folders.loading import ADAPTER_WEIGHTS, describe_other_weights
from hydralign.models.folders.weight_files import require_float_weights
from hydralign.models.folders.weights import require_finite_file

ADAPTER = "default"
"""The name of the adapter that is trained, as PEFT itself calls the first one."""


def read_language_adapter(folder: str) -> Any:
    """The PEFT config of a language model's adapter in a local folder.

    Raises ModelError for another kind, when the config cannot be read, and when the weights beside it are not in
    safetensors, or damaged.
    """
    weights, about = Path(folder) / ADAPTER_WEIGHTS, Path(folder) / "adapter_config.json"
    # PEFT would take pickled weights, or look for missing ones on the hub.
    if not weights.exists():
        raise ModelError(
            f"Adapter folder {folder!r} has no {ADAPTER_WEIGHTS}{describe_other_weights(Path(folder))}: there is "
            "nothing to merge or to go on from. Save the adapter with save_pretrained of PEFT, which writes "
            "safetensors."
        )
    require_float_weights(weights)
    require_finite_file(weights)
    way_out = (
        "What the adapter changes is unknown. Save the adapter again with save_pretrained of PEFT, or install the "
        "version of PEFT that wrote it."
    )
    with named_load_errors(f"{about} cannot be read", way_out):
        config = PeftConfig.from_pretrained(folder)
    base = config.base_model_name_or_path
    if config.peft_type is None:
        raise ModelError(f"{about} cannot be read: it names no peft_type. {way_out}")
    if base is not None and not isinstance(base, str):
        raise ModelError(f"{about} cannot be read: base_model_name_or_path is {base!r:.80}, no path. {way_out}")
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ModelError(
            f"{folder!r} is a PEFT adapter of type {kind}, which adds inputs to the model instead of changing its "
            "weights: it can neither be merged nor trained further here. Train a LoRA adapter in its place, or name "
            "a whole model."
        )
    if config.task_type not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise ModelError(
            f"{folder!r} is a PEFT adapter of type {kind} for {config.task_type}: only adapters of language models "
            "that merge into their weights can be started from. Merge it into its base, save the whole model and "
            "name that folder."
        )
    return config


def load_adapter(model: Any, folder: str, config: Any, *, trained: bool) -> Any:
    """The model in PEFT's wrapping with the adapter of the folder in it; `trained` says whether it learns.

    Raises ModelError when the two do not fit each other: weights that are missing, of other shapes, or for modules
    that the model does not have.
    """
    try:
        with warnings.catch_warnings():
            # PEFT asks transformers for a name that is about to be renamed there; nothing that a user could mend.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`", category=UserWarning)
            warnings.filterwarnings("error", message="Found missing adapter keys")
            peft: Any = PeftModel.from_pretrained(
                model, folder, adapter_name=ADAPTER, is_trainable=trained, config=config
            )
            # The first load tells nobody which weights of the file found no place.
            unused = peft.load_adapter(folder, adapter_name=ADAPTER, is_trainable=trained).unexpected_keys
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"Adapter {folder!r} does not fit the base model: {first_line(error)} Name the base that the adapter was "
            "trained on (model.path, or base_model_name_or_path in its adapter_config.json), or name a whole model."
        ) from error
    if unused:
        raise ModelError(
            f"Adapter {folder!r} holds {len(unused)} weights for which {type(model).__name__} has no place (first: "
            f"{unused[0]}): without them it would be another model than the one that was trained. Name the base that "
            "the adapter was trained on, or merge the two where they fit and name the whole model."
        )
    return peft


def save_adapter(peft: Any, folder: Path) -> None:
    """Write the trained adapter as PEFT does; it names its base model."""
    # Without this switch PEFT would look for the base model's config on the network.
    peft.save_pretrained(folder, selected_adapters=[ADAPTER], save_embedding_layers=False)


class AdapterStart:
    """The trained parameters of an adapted model as they were at the start, to be its reference.

    Copies of all that is trained, whatever it is part of: adapters, biases, whole modules, token embeddings.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.copies: list[Tensor] = [p.detach().clone() for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has its starting parameters. Not between a forward pass and its backward pass."""
        trained = [p.data for p in self._parameters]
        try:
            for parameter, copy in zip(self._parameters, self.copies, strict=True):
                parameter.data = copy
            yield
        finally:
            for parameter, own in zip(self._parameters, trained, strict=True):
                parameter.data = own
