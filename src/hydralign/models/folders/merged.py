"""Any policy folder as one plain model: an adapter is merged into the base that it names."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from os.path import expanduser
from pathlib import Path
from typing import Any

from hydralign.errors import ModelError
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.adapters import load_adapter, read_language_adapter
from hydralign.models.folders.load_errors import loading, named_load_errors
from hydralign.models.folders.loading import check_folder, load_model, looks_local, own_tokenizer
from hydralign.models.folders.tokenizers import read_tokenizer
from hydralign.models.versions import LoraLayer


def load_merged(
    path: str, load: Callable[..., tuple[Any, Any]] | None = None, *, tokenizer: str | None = None, **settings: Any
) -> tuple[Any, Any]:
    """(model, tokenizer) of a model's folder or a hub id, as `load`, by default `load_model`, gives them with these
    settings. A PEFT adapter's folder gives its base, loaded so, into which the adapter is merged.

    The tokenizer is that of the folder `tokenizer`, else the adapter's own, else the model's. Raises as `load` does,
    and ModelError for an adapter that cannot be merged.
    """
    path, load = expanduser(path), load or load_model
    adapter = adapter_config_of(path)
    if adapter is None:
        return load(path, tokenizer=tokenizer, **settings)
    model, encoder = load(base_path_of(adapter, path), tokenizer=tokenizer or own_tokenizer(path), **settings)
    return merged(model, adapter, path), encoder


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model's folder or hub id as it was saved; an adapter without one has its base's.

    Raises ModelError.
    """
    where = check_folder(path)
    adapter = adapter_config_of(where)
    if adapter is not None:
        where = own_tokenizer(where) or base_path_of(adapter, path)
    way_out = "Without it no tokens can be counted. Name a model with its tokenizer, saved by transformers."
    with loading(f"The tokenizer of {path!r}", where, way_out):
        return read_tokenizer(where)


def adapter_config_of(folder: str) -> Any:
    """The PEFT config of an adapter folder, or None for another.

    Raises ModelError for one that cannot be read or merged.
    """
    folder = expanduser(folder)
    if not (Path(folder) / "adapter_config.json").exists():
        return None
    config = read_language_adapter(folder)
    # With its task named, PEFT would ask the classifier for a language model's methods.
    config.task_type = None
    return config


def base_path_of(adapter: Any, path: str) -> str:
    """The local folder or hub id that an adapter names as its base; a name without a slash is either."""
    base = adapter.base_model_name_or_path
    way_out = "Correct base_model_name_or_path in its adapter_config.json, or name a whole model."
    with named_load_errors(f"Adapter {path!r} names {base!r} as its base model, which cannot be looked up", way_out):
        if not base or (looks_local(base) and not Path(base).expanduser().is_dir()):
            raise ModelError(
                f"Adapter {path!r} names {base!r} as its base model, which is no folder here: without it there is no "
                f"trunk. {way_out}"
            )
    return check_folder(base)


def merged(model: Any, adapter: Any, folder: str) -> Any:
    """The model with the adapter added to its weights, all of which learn as those of a loaded model do."""
    adapted = load_adapter(model, folder, adapter, trained=False)
    _require_untied(model, folder)
    with warnings.catch_warnings():
        # T5's config says that its head is tied, whatever the folder holds; PEFT corrects it here, with a warning.
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        # PEFT froze the base.
        whole = adapted.merge_and_unload().requires_grad_(True)
    freeze_fixed(whole)
    return whole


def _require_untied(model: Any, folder: str) -> None:
    """Raise ModelError when an adapted weight is used in a second place, which merging would change too."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and any(uses[id(p)] > 1 for p in module.get_base_layer().parameters()):
            raise ModelError(
                f"Adapter {folder!r} adapts {name}, whose weight is tied to another layer's: merged, it would change "
                "both. Train the adapter without that layer (model.form.targets), or go on with it under "
                "model.form: {type: lora, adapter: ...}."
            )
