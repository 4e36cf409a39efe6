"""From a model to a policy in one of its forms. The only place that tells the forms apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ConfigError, ModelError, did_you_mean
from hydralign.models.backbones.backbone import Backbone
from hydralign.models.backbones.causal import CausalBackbone
from hydralign.models.backbones.encoder_decoder import EncoderDecoderBackbone
from hydralign.models.bf16_speed import concrete_precision
from hydralign.models.branch import Branch
from hydralign.models.checks import check_decoding, check_readout
from hydralign.models.folders.loading import own_tokenizer, prepare_model
from hydralign.models.folders.merged import adapter_config_of, base_path_of, load_merged
from hydralign.models.folders.saving import load_value_branch, load_value_head, require_no_value_branch
from hydralign.models.forms.full import make_full_form
from hydralign.models.forms.hydra import make_hydra_form
from hydralign.models.forms.lora import make_lora_form
from hydralign.models.heads.token import absent_ids
from hydralign.models.heads.value import Critic, ValueHead
from hydralign.models.policy import BranchReference, ModelForm, Policy, Reference
from hydralign.models.precision import convert_to_fp32, store_matrices_in_bf16

VALUES_WITHOUT_CRITIC = "values are asked for, and the method has no critic: they would never be trained."

FORMS: Mapping[str, Callable[[], Form]] = {"full": FullForm, "lora": LoraForm, "hydra": HydraForm}


def load_policy(
    path: str | os.PathLike[str],
    *,
    form: Form | str | None = None,
    critic: bool = True,
    reference: Reference | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Policy:
    """A policy from a model folder or hub id; its value head is the one saved there, or a new one at zero.

    `form` is a FullForm (the default), LoraForm or HydraForm, or the name of one with its defaults, such as "lora".
    Without `critic` it has no values, as methods that need none want it; `reference` takes the place of the model's own
    start as what KL is measured to.
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
    model, tokenizer = _load(path, adapter, pad_token, device)
    shared: dict[str, Any] = {"form": form, "reference": reference, "precision": precision, "seed": seed}
    if not critic:
        return make_policy(model, tokenizer, critic=False, **shared)
    head_folder = adapter or path
    head = load_value_head(head_folder, model.config.hidden_size).to(device)
    policy = make_policy(model, tokenizer, value_head=head, **shared)
    if policy.critic is not None and policy.critic.backbone is not None:
        load_value_branch(head_folder, policy.critic.backbone.body)
    else:
        require_no_value_branch(head_folder)
    return policy


def load_supervised_policy(
    path: str | os.PathLike[str],
    *,
    form: Form | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Policy:
    """`make_supervised_policy` from a model folder or hub id, or from an adapter's folder.

    An adapter in `path` is trained further in the LoRA form, which saves an adapter for the same base, and merged into
    its base in the others. Raises ModelError or TokenizerError when it cannot be trained from.
    """
    path = os.path.expanduser(path)
    adapter = adapter_config_of(path)
    if adapter is not None and isinstance(form, LoraForm):
        if form.adapter is not None:
            raise ModelError(
                f"model.path={path!r} and model.form.adapter={form.adapter!r} are two adapters: which of them is to be "
                "trained further is unclear. Name the base under model.path, or leave form.adapter out."
            )
        form, path = form.model_copy(update={"adapter": path}), base_path_of(adapter, path)
    trained_adapter = form.adapter if isinstance(form, LoraForm) else None
    model, tokenizer = _load(path, trained_adapter, pad_token, device)
    return make_supervised_policy(model, tokenizer, form=form, precision=precision, seed=seed)


def load_frozen_policy(
    path: str,
    *,
    reference: Policy | None = None,
    precision: str = "fp32",
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
) -> Policy:
    """`make_frozen_policy` from a model folder, a hub id or an adapter's folder."""
    model, tokenizer = load_merged(path, pad_token=pad_token, device=device)
    return make_frozen_policy(model, tokenizer, reference=reference, precision=precision)


def _load(path: str, adapter: str | None, pad_token: str | None, device: str | torch.device) -> tuple[Any, Any]:
    model, tokenizer = load_merged(path, tokenizer=own_tokenizer(adapter), pad_token=pad_token, device=device)
    if Path(path).exists():
        # An adapter saved from this model names it; an absolute name is found from any folder.
        model.name_or_path = model.config.name_or_path = str(Path(path).resolve())
    return model, tokenizer


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
    critic: bool = True,
    reference: Reference | None = None,
    precision: str = "fp32",
    seed: int = 0,
) -> Policy:
    """A policy in the wanted form around a model in memory, which it takes over. `seed` seeds fresh adapters.

    Without `critic` it has no values. `reference` takes the place of the form's own, of which no copy is made then.
    Raises ModelError when the model is not understood, or cannot be sampled or trained in this form.
    """
    form, precision = _form_of(form), concrete_precision(precision, model.device)
    has_branch = isinstance(form, HydraForm) and form.value == "branch"
    if not critic and (has_branch or value_head is not None):
        raise ConfigError(f"{VALUES_WITHOUT_CRITIC} Leave out value: branch and value_head, or use critic=True.")
    prepare_model(convert_to_fp32(model), tokenizer)
    plain = Branch(backbone_of(model))
    check_readout(plain)
    check_decoding(plain)
    shared: dict[str, Any] = {
        "precision": precision,
        "reference": reference is None,
        "absent_ids": absent_ids(tokenizer, plain.vocabulary),
    }
    made = _in_form(model, tokenizer, form, shared, seed)
    if not critic:
        return Policy(made, tokenizer, reference=reference)
    head = (value_head or ValueHead(model.config.hidden_size)).float().to(model.device)
    own = made.branch.backbone.with_own_weights() if has_branch else None
    return Policy(made, tokenizer, critic=Critic(head, own), reference=reference)


def _in_form(model: Any, tokenizer: Any, form: Form, shared: Mapping[str, Any], seed: int) -> ModelForm:
    backbone = partial(backbone_of, precision=shared["precision"])
    if isinstance(form, FullForm):
        return make_full_form(model, backbone, **shared)
    more: dict[str, Any] = {"tokenizer": tokenizer, "seed": seed, **shared}
    if isinstance(form, HydraForm):
        settings = form.model_dump(include={"unfrozen_layers", "states", "offload"})
        return make_hydra_form(model, backbone, **settings, **more)
    if form.unfrozen_layers is not None:
        return make_hydra_form(model, backbone, unfrozen_layers=form.unfrozen_layers, adapters=form, **more)
    return make_lora_form(model, backbone, settings=form, **more)


def make_supervised_policy(
    model: Any, tokenizer: Any, *, form: Form | None = None, precision: str = "fp32", seed: int = 0
) -> Policy:
    """A policy without critic, reference and trunk, which it takes over: trained whole (in the hydra form too) or
    through adapters, of all layers or of the top ones.

    Texts decide what can be said, so every row of the output head is a token. `seed` seeds fresh adapters. Raises
    ModelError when the head is not understood.
    """
    precision = concrete_precision(precision, model.device)
    prepare_model(convert_to_fp32(model), tokenizer)
    backbone = partial(backbone_of, precision=precision)
    shared: dict[str, Any] = {"precision": precision, "reference": False}
    if isinstance(form, LoraForm):
        made = make_lora_form(model, backbone, tokenizer=tokenizer, settings=form, seed=seed, **shared)
    else:
        made = make_full_form(model, backbone, **shared)
    check_readout(made.branch)
    return Policy(made, tokenizer)


def make_frozen_policy(
    model: Any, tokenizer: Any, *, reference: Policy | None = None, precision: str = "fp32"
) -> Policy:
    """A finished model, which is only sampled and read; its reference is another policy's model, or itself.

    Takes the model over. Raises ModelError when it cannot be sampled, or the reference has other tokens.
    """
    precision = concrete_precision(precision, model.device)
    plain = Branch(backbone_of(model.requires_grad_(False)))
    check_decoding(plain)
    other = plain if reference is None else reference.whole
    if other.vocabulary != plain.vocabulary:
        raise ModelError(
            f"the two models have {other.vocabulary:,} and {plain.vocabulary:,} tokens: KL between "
            "them is not defined. Compare models that share a tokenizer."
        )
    if precision == "bf16":
        store_matrices_in_bf16(model)
    # What the reference cannot say has no KL to it, so it is not said here.
    absent = {*absent_ids(tokenizer, plain.vocabulary), *other.head.absent_ids.tolist()}
    backbone = partial(backbone_of, precision=precision)
    made = make_full_form(model, backbone, precision=precision, reference=False, absent_ids=tuple(sorted(absent)))
    check_readout(made.branch)
    return Policy(made, tokenizer, reference=BranchReference(made.branch if reference is None else other))


def backbone_of(model: Any, **settings: Any) -> Backbone:
    """The model as its architecture is read: with an encoder, or as one causal stack."""
    kind = EncoderDecoderBackbone if model.config.is_encoder_decoder else CausalBackbone
    return kind(model, **settings)


def _form_of(form: Form | str | None) -> Form:
    if isinstance(form, FullForm | LoraForm | HydraForm):
        return form
    if form is None or (isinstance(form, str) and form in FORMS):
        return FORMS[form or "full"]()
    raise ConfigError(
        f"form={form!r:.80} is no form of a policy: what would be trained is unknown. "
        f"{did_you_mean(str(form), FORMS)} Or give a FullForm, LoraForm or HydraForm."
    )
