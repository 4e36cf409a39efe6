"""What is known of a model before it is loaded, and of one that an earlier section of the recipe has yet to make.

Only config and tokenizer files are read, never weights; a hub id is looked up in the local cache alone. What is not
known is None: its check waits until the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
)

from hydralign.config.model import HydraForm, LoraForm, ModelConfig
from hydralign.encoder_input import mark_for_encoder
from hydralign.errors import ModelError
from hydralign.models.backbones.rope import explain_rope_limit
from hydralign.models.backbones.slicing import ARCHITECTURE_ERRORS, top_layers
from hydralign.models.classifiers.starting import require_classifier_kind
from hydralign.models.classifiers.training import require_freezable
from hydralign.models.folders.from_scratch import require_writing_family
from hydralign.models.folders.load_errors import named_load_errors
from hydralign.models.folders.loading import (
    check_folder,
    context_of,
    own_tokenizer,
    prepare_tokenizer,
    require_language_model,
    writing_kind,
)
from hydralign.models.folders.merged import adapter_config_of, base_path_of, load_tokenizer
from hydralign.models.folders.weights import embedding_rows, require_ids_have_rows
from hydralign.models.forms.build import adapter_as_base
from hydralign.models.forms.lora import require_adapter
from hydralign.models.linear_layers import linear_layers
from hydralign.runs.same_settings import comparable_text
from hydralign.runs.steps import Step


@dataclass(frozen=True)
class ModelFacts:
    """What is known of one model."""

    path: str | None = None
    """Its folder or hub id; None of one with random weights."""
    config: Any = None
    """That of transformers."""
    layers: int | None = None
    context: int | None = None
    context_note: str = ""
    """Why the context ends there, as a clause; empty where it is simply the model's."""
    tokenizer: Any = None

    @property
    def vocabulary(self) -> int | None:
        """Rows of its embedding."""
        return None if self.config is None else embedding_rows(self.config)

    @property
    def kind(self) -> str:
        """What to call it in a message."""
        return (getattr(self.config, "architectures", None) or ["the model"])[0]


@dataclass(frozen=True)
class ModelSource:
    """Looks models up: in folders, and among what the earlier steps of a recipe make (folder: step).

    Folders are named as `comparable_text` shows them, from the recipe's `output`.
    """

    recipe_model: ModelConfig
    output: str
    made: Mapping[str, Step]
    labels: dict[str, Sequence[str]] = field(default_factory=dict)
    """Labels of the classifiers that are yet to be made, by folder, as far as they were found in data."""

    def of_config(self, model: ModelConfig, *, writes: bool = True) -> ModelFacts:
        """Facts on a section's model. `writes` says that it is to be a language model.

        Raises ModelError or TokenizerError as loading it would.
        """
        if model.new is not None:
            if writes:
                require_writing_family(model.new.family)
            return ModelFacts(layers=model.new.layers, context=model.new.context)
        assert model.path is not None
        facts = self.of_path(model.path, writes=writes)
        if isinstance(model.form, LoraForm) and model.form.adapter is not None:
            self._require_adapter(model.form.adapter)
        if writes and facts.tokenizer is not None:
            reads = facts.context if facts.config.is_encoder_decoder else None
            prepare_tokenizer(facts.tokenizer, pad_token=model.pad_token, path=model.path, reads=reads)
        return facts

    def _require_adapter(self, folder: str) -> None:
        """Raise ModelError unless an adapter lies in the folder, or an earlier section makes one there."""
        maker = self.maker(folder)
        if maker is None:
            require_adapter(folder)
        elif not self._makes_adapter(maker):
            form = "a classifier" if maker.section.makes == "classifier" else f"form {self._start_of(maker).form.type}"
            raise ModelError(
                f"model.form.adapter={folder!r} will be a whole model ({form}), not an adapter: there would be nothing "
                "to go on from. Name it under model.path, or train it with model.form: {type: lora}."
            )

    def require_base(self, model: ModelConfig) -> None:
        """Raise ModelError when a LoRA policy is to start from a path that is, or will be, an adapter itself."""
        if model.path is None or not isinstance(model.form, LoraForm):
            return
        maker = self.maker(model.path)
        there = (Path(model.path).expanduser() / "adapter_config.json").exists()
        if there if maker is None else self._makes_adapter(maker):
            raise adapter_as_base(model.path)

    def _makes_adapter(self, maker: Step) -> bool:
        """Whether a step saves an adapter, not a whole model."""
        return maker.section.makes == "language model" and isinstance(self._start_of(maker).form, LoraForm)

    def _start_of(self, maker: Step) -> ModelConfig:
        return maker.config.model or self.recipe_model

    def of_path(self, path: str, *, writes: bool = True) -> ModelFacts:
        """Facts on the model in a folder, or on the one that an earlier section makes there. Raises ModelError.

        `writes` says that it is to be a language model, otherwise one to make a classifier of.
        """
        maker = self.maker(path)
        if maker is not None:
            if maker.section.makes == "classifier" and writes:
                raise ModelError(
                    f"{path!r} will be a reward model or a classifier, which scores texts and writes none. Name a "
                    "language model; to use it as a reward, name it in ppo.rewards."
                )
            return self.of_config(self._start_of(maker), writes=maker.section.makes == "language model")
        where = check_folder(path)
        adapter = adapter_config_of(where)
        base = where if adapter is None else base_path_of(adapter, path)
        config = read_model_config(base)
        if config is None:
            return ModelFacts(path)
        text: Any = config.get_text_config()
        require_kind(config, str(base), writes=writes)
        tokenizer = load_tokenizer(path) if Path(own_tokenizer(where) or base).exists() else None
        if tokenizer is not None:
            require_rows_for_ids(tokenizer, config, f"Model {str(base)!r}", writes=writes)
        model = SimpleNamespace(config=config)
        if tokenizer is not None and writes and config.is_encoder_decoder:
            mark_for_encoder(tokenizer, context_of(model))
        names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
        layers = next((n for n in (getattr(text, name, None) for name in names) if isinstance(n, int)), None)
        return ModelFacts(path, config, layers, context_of(model), explain_rope_limit(model), tokenizer)

    def maker(self, path: str) -> Step | None:
        """The earlier step that will make this folder; None when it is there, or nobody makes it."""
        return None if Path(path).expanduser().exists() else self.made.get(comparable_text(path, self.output))


def read_model_config(path: str | Path) -> Any:
    """The config of a model in a folder, or of a hub id in the local cache; None of one that is not there.

    Raises ModelError for a folder's config that transformers cannot read.
    """
    is_folder = Path(path).exists()
    unknown = f"The config.json of {str(path)!r} cannot be read"
    try:
        with named_load_errors(unknown, "Name a model that transformers knows, saved by save_pretrained."):
            return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=not is_folder)
    except ModelError:
        if is_folder:
            raise
        return None


def require_kind(config: Any, path: str, *, writes: bool) -> None:
    """Raise ModelError when a model of this config is no causal language model, or cannot be made a classifier."""
    if not writes:
        require_classifier_kind(config, path)
        return
    require_language_model(config.architectures, (), path)
    has_encoder = config.is_encoder_decoder
    if type(config) not in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if has_encoder else MODEL_FOR_CAUSAL_LM_MAPPING):
        raise ModelError(
            f"Model {path!r} is of type {config.model_type!r}: transformers has no language model of it, so it could "
            "not be loaded to write. Name a language model, such as one of gpt2, llama, mistral, qwen3, t5 or bart."
        )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not has_encoder
    if is_encoder and getattr(config, "is_decoder", None) is False:
        kind = (config.architectures or [f"model of type {config.model_type!r}"])[0]
        raise ModelError(
            f"Model {path!r} is a {kind}, which reads both ways (is_decoder is false in its config.json): it has no "
            "next token to predict. Name a causal language model, such as one of gpt2, llama, mistral or qwen3; an "
            "encoder can score: name it as the model of a reward section."
        )


def require_rows_for_ids(tokenizer: Any, config: Any, subject: str, *, writes: bool) -> None:
    """Raise TokenizerError as loading the model would. Its skeleton is made only where ids seem to lie beyond it."""
    rows = embedding_rows(config)
    if rows is None or max(tokenizer.get_vocab().values(), default=0) < rows:
        return
    model = _skeleton(writing_kind(config) if writes else AutoModelForSequenceClassification, config)
    if model is not None:
        require_ids_have_rows(tokenizer, model, subject)


def _skeleton(kind: Any, config: Any) -> Any:
    """The model without weights; None where it cannot be made so, and is examined when it is loaded."""
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False)
    except ARCHITECTURE_ERRORS:
        return None


def require_form(
    facts: ModelFacts, model: ModelConfig, *, freeze_layers: int = 0, scores: bool = False, splits: bool = False
) -> None:
    """Raise ModelError for a form, or a number of frozen layers, that the model has not enough layers or names for.

    `scores` says that the section trains a classifier, which may adapt all of its layers; `splits` that a hydra form
    is taken at its word, as ppo does.
    """
    form, layers = model.form, facts.layers
    top = form.unfrozen_layers if isinstance(form, LoraForm) or (isinstance(form, HydraForm) and splits) else None
    if layers is not None:
        require_freezable(freeze_layers, layers, facts.kind)
        if top is not None:
            top_layers(top, layers, facts.kind, all_allowed=scores)
    if isinstance(form, LoraForm) and form.targets and form.adapter is None and facts.config is not None:
        _require_targets(facts, form)


def _require_targets(facts: ModelFacts, form: LoraForm) -> None:
    """Raise ModelError when no linear layer of the model has one of the form's names."""
    model = _skeleton(writing_kind(facts.config), facts.config)
    if model is None:
        return
    linear = list(linear_layers(model))
    targets = form.targets or ()
    if not any(name == target or name.endswith(f".{target}") for name in linear for target in targets):
        known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise ModelError(
            f"model.form.targets={list(targets)}: no adapter could be placed in {facts.kind}. Name some of its linear "
            f"layers: {known}."
        )
