"""The LoRA form: low-rank adapters are trained, the reference is the same model without them.

Going on from a trained adapter, the reference is that adapter's start, kept as a copy of all that is trained: the bare
base model would be another model, and KL would not start at 0. Whatever is trained is trained in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from hydralign.config.model import LoraForm
from hydralign.errors import ModelError
from hydralign.models.backbones.slicing import layers_of, stack_of, top_layers
from hydralign.models.branch import Branch
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.adapters import ADAPTER, AdapterStart, load_adapter, read_language_adapter
from hydralign.models.folders.load_errors import named_load_errors
from hydralign.models.folders.loading import prepare_model
from hydralign.models.linear_layers import linear_layers
from hydralign.models.policy import BranchReference, MakeBackbone, ModelForm
from hydralign.models.precision import store_frozen_in_bf16
from hydralign.models.versions import LORA_TARGETS, Conv1D


def make_lora_form(
    model: Any,
    backbone: MakeBackbone,
    *,
    tokenizer: Any,
    settings: LoraForm,
    precision: str = "fp32",
    reference: bool = True,
    seed: int = 0,
    absent_ids: Sequence[int] = (),
) -> ModelForm:
    """Adapters, and whatever else a trained adapter trains, on a frozen base. In bf16 mode the base's matrices are
    stored in bf16, the adapters in fp32.

    Takes the model over. `settings` say which adapters, and where.
    """
    peft = adapt(model, settings, seed=seed)
    learned = [p for p in peft.parameters() if p.requires_grad]
    start = AdapterStart(learned) if reference and settings.adapter is not None else None
    if precision == "bf16":
        store_frozen_in_bf16(model)
    prepare_model(model, tokenizer)
    whole = Branch(backbone(model), absent_ids=absent_ids)
    # With all that is trained in the decoder, the encoder is a trunk: what it makes of a prompt holds for a rollout.
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    trunk = whole.backbone.trunk(0, dtype=dtype, offload=False) if settings.decoder_only else None
    own = BranchReference(whole, start.in_place if start else peft.disable_adapter) if reference else None
    return ModelForm(peft, whole, whole, trunk, reference=own, reference_weights=start.copies if start else ())


def adapt(model: Any, settings: LoraForm, *, seed: int) -> Any:
    """The model in PEFT's wrapping, frozen but for fresh adapters, or for a trained one to go on from, on the top
    layers only where the settings say so.

    Modules that a trained adapter replaces are copied from the base, so the base must still be in fp32 here: its
    matrices are rounded afterwards. Raises ModelError when adapters and model do not fit each other, or a trained
    adapter changes other layers.
    """
    kind, parts = type(model).__name__, _adapted_parts(model, settings)
    model.requires_grad_(False)
    adapter = settings.adapter
    if adapter is None:
        fresh = place_adapters(model, settings, f"in {kind}", seed=seed, **_placement(model, settings, parts))
        if parts is not None:
            _require_within(fresh, parts, settings)
        return fresh
    require_adapter(adapter)
    peft = load_adapter(model, adapter, read_language_adapter(adapter), trained=True)
    freeze_fixed(model)
    if parts is not None:
        _require_within(peft, parts, settings)
    return peft


def _adapted_parts(model: Any, settings: LoraForm) -> list[Any] | None:
    """The modules that adapters are to stay in, as the settings say; None for the whole model."""
    kind, stack = type(model).__name__, stack_of(model)
    if settings.decoder_only and not model.config.is_encoder_decoder:
        raise ModelError(f"model.form.decoder_only: {kind} has no encoder to leave out. Leave the setting out.")
    if settings.unfrozen_layers is not None:
        layers = layers_of(stack)
        return [layers[number] for number in top_layers(settings.unfrozen_layers, len(layers), kind)]
    return [stack] if settings.decoder_only else None


def _placement(model: Any, settings: LoraForm, parts: Sequence[Any] | None) -> dict[str, Any]:
    """Where PEFT puts adapters: by numbers of layers or, as encoder and decoder number theirs alike, by names."""
    if not model.config.is_encoder_decoder:
        last = 0 if parts is None else len(layers_of(model.base_model))
        numbers = None if parts is None else list(range(last - len(parts), last))
        return {"task_type": "CAUSAL_LM", "layers_to_transform": numbers}
    if parts is None:
        return {"task_type": "SEQ_2_SEQ_LM"}
    inside = {id(module) for part in parts for module in part.modules()}
    ends = tuple(settings.targets or LORA_TARGETS.get(model.config.model_type, ()))
    linear = [name for name, module in linear_layers(model).items() if id(module) in inside]
    named = [name for name in linear if any(name == end or name.endswith(f".{end}") for end in ends)]
    return {"task_type": "SEQ_2_SEQ_LM", "target_modules": named or list(ends)}


def require_adapter(folder: str) -> None:
    """Raise ModelError unless the folder that model.form.adapter names holds an adapter."""
    if not (Path(folder) / "adapter_config.json").exists():
        raise ModelError(
            f"model.form.adapter={folder!r} holds no adapter_config.json: there is no adapter to go on from. "
            "Name a folder that PEFT saved, or leave it out to start with fresh adapters."
        )


def _require_within(peft: Any, parts: Sequence[Any], settings: LoraForm) -> None:
    """Raise ModelError when something is trained outside of these modules, the decoder or its top layers."""
    inside = {id(p) for part in parts for p in part.parameters()}
    outside = [name for name, p in peft.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        where, setting = "the decoder", "decoder_only"
        if settings.unfrozen_layers is not None:
            where, setting = f"the top {settings.unfrozen_layers} layers", "unfrozen_layers"
        raise ModelError(
            f"model.form: the adapter changes {outside[0]}, which is not in {where}: what is shared must stay as it "
            f"is. Leave {setting} out, or name {'another adapter' if settings.adapter else 'other targets'}."
        )


def require_rank_fits(model: Any, rank: int, targets: Sequence[str] | None) -> None:
    """Raise ModelError when the rank is above the smaller side of every matrix that could be adapted."""
    linear = list(linear_layers(model).items())
    named = [(n, m) for n, m in linear if not targets or n.rpartition(".")[2] in targets or n in targets]
    widest = max((min(module.weight.shape) for _, module in named or linear), default=rank)
    if rank > widest:
        raise ModelError(
            f"model.form.rank={rank}: no adapted matrix of {type(model).__name__} has a rank above {widest}, so the "
            f"adapters would be larger than what they adapt. Choose at most {widest}, or form: {{type: full}}."
        )


def place_adapters(
    model: Any, settings: LoraForm, where: str, *, seed: int, advice: str = "Name", **placement: Any
) -> Any:
    """The model in PEFT's wrapping with fresh adapters of this form, without dropout and biases. Their second factor is
    zero: at the start they change nothing, to the bit.

    `placement` tells PEFT where they go; `where` and `advice` are parts of the error when that fails. Raises ModelError
    for a rank that does not fit, and for whatever PEFT raises, memory that ran out excepted.
    """
    require_rank_fits(model, settings.rank, settings.targets)
    targets = list(settings.targets) if settings.targets else None
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        **{"target_modules": targets, **placement},
    )
    linear = sorted({name.split(".")[-1] for name in linear_layers(model)})
    named = named_load_errors(
        f"model.form.targets={targets and sorted(targets)}: no adapter could be placed {where}",
        f"{advice} some of its linear layers: {', '.join(linear)}.",
    )
    with named, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # PEFT asks transformers for a name that is about to be renamed there; nothing that a user could mend.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config, adapter_name=ADAPTER)
