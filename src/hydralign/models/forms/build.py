"""From a model to a policy in one of its forms. The only place that tells the forms apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ConfigError, ModelError, did_you_mean
from hydralign.models.backbones.causal import CausalModel
from hydralign.models.backbones.decoding import check_decoding
from hydralign.models.bf16_speed import concrete_precision
from hydralign.models.folders.loading import own_tokenizer, prepare_model
from hydralign.models.folders.merged import load_whole
from hydralign.models.folders.saving import load_value_branch, load_value_head, require_no_value_branch
from hydralign.models.forms.full import FullPolicy
from hydralign.models.forms.hydra import HydraPolicy
from hydralign.models.forms.lora import LoraPolicy
from hydralign.models.heads.value import ValueHead
from hydralign.models.policy import Policy
from hydralign.models.precision import convert_to_fp32

FORMS: Mapping[str, Callable[[], Form]] = {"full": FullForm, "lora": LoraForm, "hydra": HydraForm}


def load_policy(
    path: str | os.PathLike[str],
    *,
    form: Form | str | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Policy:
    """A policy from a model folder or hub id; its value head is the one saved there, or a new one at zero.

    `form` is a FullForm (the default), LoraForm or HydraForm, or the name of one with its defaults, such as "lora".
    An adapter in `path` is merged into the base that it names, unless the form trains adapters itself. Raises
    ModelError or TokenizerError when the folder cannot be trained from, ConfigError for arguments that are none.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"path={path!r:.80} names no model: there is nothing to load. Give a folder or a hub id.")
    path, form = os.path.expanduser(path), _form_of(form)
    precision = concrete_precision(precision, torch.device(device))
    if isinstance(form, LoraForm) and (Path(path) / "adapter_config.json").exists():
        raise adapter_as_base(path)
    adapter = form.adapter if isinstance(form, LoraForm) else None
    model, tokenizer = load_whole(path, tokenizer=own_tokenizer(adapter), pad_token=pad_token, device=device)
    if Path(path).exists():
        # An adapter saved from this model names it; an absolute name is found from any folder.
        model.name_or_path = model.config.name_or_path = str(Path(path).resolve())
    head_folder = adapter or path
    head = load_value_head(head_folder, model.config.hidden_size).to(device)
    policy = make_policy(model, tokenizer, value_head=head, form=form, precision=precision, seed=seed)
    if isinstance(policy, HydraPolicy) and policy.values is not None:
        load_value_branch(head_folder, policy.values.body)
    else:
        require_no_value_branch(head_folder)
    return policy


def adapter_as_base(path: str) -> ModelError:
    """The error of a LoRA policy whose model.path is an adapter itself."""
    return ModelError(
        f"model.path={path!r} is an adapter, not a whole model: what it adapts is unknown here. Name the base "
        "under model.path and the adapter under model.form: {type: lora, adapter: ...}."
    )


def make_policy(
    model: Any,
    tokenizer: Any,
    *,
    value_head: ValueHead | None = None,
    form: Form | str | None = None,
    precision: str = "fp32",
    seed: int = 0,
) -> Policy:
    """A policy in the wanted form around a model in memory, which it takes over. `seed` seeds fresh adapters.

    Raises ModelError when the model is not understood, or cannot be sampled or trained in this form.
    """
    form, precision = _form_of(form), concrete_precision(precision, model.device)
    prepare_model(convert_to_fp32(model), tokenizer)
    causal = CausalModel(model)
    causal.check_readout()
    check_decoding(causal)
    head = (value_head or ValueHead(model.config.hidden_size)).float().to(model.device)
    if isinstance(form, HydraForm):
        shared = form.model_dump(include={"unfrozen_layers", "value", "states", "offload"})
        return HydraPolicy(model, tokenizer, head, **shared, precision=precision, seed=seed)
    if isinstance(form, LoraForm) and form.unfrozen_layers is not None:
        return HydraPolicy(
            model,
            tokenizer,
            head,
            unfrozen_layers=form.unfrozen_layers,
            adapters=form,
            precision=precision,
            seed=seed,
        )
    if isinstance(form, LoraForm):
        return LoraPolicy(
            model,
            tokenizer,
            head,
            rank=form.rank,
            alpha=form.alpha,
            targets=form.targets,
            adapter=form.adapter,
            precision=precision,
            seed=seed,
        )
    return FullPolicy(model, tokenizer, head, precision=precision)


def _form_of(form: Form | str | None) -> Form:
    if isinstance(form, FullForm | LoraForm | HydraForm):
        return form
    if form is None or (isinstance(form, str) and form in FORMS):
        return FORMS[form or "full"]()
    raise ConfigError(
        f"form={form!r:.80} is no form of a policy: what would be trained is unknown. "
        f"{did_you_mean(str(form), FORMS)} Or give a FullForm, LoraForm or HydraForm."
    )


def whole_model(policy: Policy) -> CausalModel:
    """The causal model that a policy samples from, trunk and branch in one; of its adapters, those that it has."""
    if isinstance(policy, HydraPolicy):
        return policy.whole
    assert isinstance(policy, FullPolicy | LoraPolicy), "one of the forms that are made here"
    return policy.causal
