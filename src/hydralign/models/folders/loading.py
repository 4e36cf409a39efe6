"""Load a transformers causal model and its tokenizer, with the checks that spare a user a wrong run.

No remote code, safetensors only; the network is used only when `path` is no local folder.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from hydralign.errors import ModelError, TokenizerError
from hydralign.hub import describe_search, hub_access
from hydralign.models.backbones.rope import rope_limit
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.generation_settings import mend_generation_settings, read_generation_config
from hydralign.models.folders.load_errors import check_model_files, named_load_errors
from hydralign.models.folders.load_report import require_whole_load
from hydralign.models.folders.tokenizers import read_tokenizer
from hydralign.models.folders.weight_files import require_float_weights
from hydralign.models.folders.weights import require_finite_file, require_finite_weights, require_ids_have_rows

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_HEADS = re.compile("Classification|QuestionAnswering|MultipleChoice|NextSentence|Reward|ForScor|ForRegression")
"""Classes of models, as config.json names them, whose head writes nothing."""
WRITING_HEADS = re.compile("CausalLM|LMHead|ConditionalGeneration|DoubleHeads")
OTHER_WEIGHTS = re.compile(r"(score|classifier|classification_head|qa_outputs|reward_head|regression_head)\.")
"""Names of the weights of such heads."""


def looks_local(path: str) -> bool:
    """Whether a user who wrote this meant a folder, not a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def find_folder(path: str) -> Path | None:
    """The folder that `path` names, `~` expanded; None where it names none, and is a hub id by its form.

    Raises ModelError for a folder that is missing or cannot be read, and for a file.
    """
    with named_load_errors(f"Model folder {path!r} cannot be read", "Check the path and its permissions."):
        folder = Path(path).expanduser()
        if folder.is_dir():
            list(folder.iterdir())
            return folder
        if not folder.exists():
            if path.startswith((".", "/", "~")) or path.count("/") > 1:
                raise ModelError(
                    f"Model folder {path!r} does not exist: there is nothing to load (looked at {folder.absolute()}). "
                    f"{_nearest(folder)}Check the path, or name a hub id such as openai-community/gpt2."
                )
            return None
    raise ModelError(
        f"model path {path!r} is a file: a model is a folder with config.json and weights. Name the folder that "
        f"it lies in, such as {str(folder.parent)!r}, if that was saved by save_pretrained."
    )


def check_folder(path: str) -> str:
    """The expanded path; raises ModelError when a local folder is missing or holds no weights."""
    folder = find_folder(path)
    if folder is None:
        return path
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise ModelError(
            f"Model folder {path!r} has no config.json: transformers cannot tell what it is. "
            "Point to a folder written by save_pretrained."
        )
    if not any((folder / name).exists() for name in (*WEIGHT_FILES, ADAPTER_WEIGHTS)):
        raise ModelError(
            f"Model folder {path!r} has no model.safetensors{_other_weights(folder)}: random weights would be trained "
            "in its place. Save the model with save_pretrained of transformers 5, which writes safetensors."
        )
    check_model_files(folder)
    return str(folder)


def _nearest(folder: Path) -> str:
    """A sentence that proposes a folder of nearly the same name beside a missing one, if there is one."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    wanted = folder.absolute().relative_to(there).parts[0]
    near = difflib.get_close_matches(wanted, [f.name for f in there.iterdir() if f.is_dir()], n=1, cutoff=0.6)
    return f"Did you mean {str(there / near[0])!r}? " if near else ""


def read_adapter(folder: str) -> PeftConfig:
    """The PEFT config of a local adapter folder.

    Raises ModelError when it cannot be read, or the weights beside it are not in safetensors, or damaged.
    """
    weights, about = Path(folder) / ADAPTER_WEIGHTS, Path(folder) / "adapter_config.json"
    # PEFT would take pickled weights, or look for missing ones on the hub.
    if not weights.exists():
        raise ModelError(
            f"Adapter folder {folder!r} has no {ADAPTER_WEIGHTS}{_other_weights(Path(folder))}: there is nothing to "
            "merge or to go on from. Save the adapter with save_pretrained of PEFT, which writes safetensors."
        )
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{weights} cannot be read ({error}): what the adapter learned is lost. Save it again, or name another."
        ) from error
    require_float_weights(weights)
    require_finite_file(weights)
    try:
        config = PeftConfig.from_pretrained(folder)
    except Exception as error:
        raise _unreadable(about, f"{type(error).__name__}: {error}") from error
    if config.peft_type is None:
        raise _unreadable(about, "it names no peft_type")
    base = config.base_model_name_or_path
    if base is not None and not isinstance(base, str):
        raise _unreadable(about, f"base_model_name_or_path is {base!r:.80}, which is no path")
    return config


def _unreadable(about: Path, reason: str) -> ModelError:
    return ModelError(
        f"{about} cannot be read ({reason}): what the adapter changes is unknown. Save the adapter again with "
        "save_pretrained of PEFT, or install the version of PEFT that wrote it."
    )


def _other_weights(folder: Path) -> str:
    """What to tell of the weights of other kinds in a folder that holds no safetensors."""
    gguf = ", ".join(sorted(f.name for f in folder.iterdir() if f.suffix == ".gguf"))
    if gguf:
        return f" (found {gguf}: GGUF files are quantised for inference and cannot be trained)"
    other = ", ".join(sorted(f.name for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth"}))
    return f" (found {other}: pickled weights can run code and are refused)" if other else ""


def own_tokenizer(adapter: str | None) -> str | None:
    """The folder of an adapter that was saved with a tokenizer, which then comes before its base's; else None."""
    return adapter if adapter is not None and (Path(adapter) / "tokenizer_config.json").exists() else None


def load_model(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    pad_token: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """(model, tokenizer) in fp32, eval mode, dropout off, SDPA attention; `tokenizer` is a folder of its own.

    Raises ModelError for a folder without weights or an unknown architecture, TokenizerError for a tokenizer that
    lacks a pad or an end-of-sequence token.
    """
    path = os.fspath(path)
    where = check_folder(path)
    taken_for = describe_search(where)
    way_out = "Check that it is a causal language model with its tokenizer, saved by transformers."
    own = tokenizer or where
    with (
        hub_access(own, "model"),
        named_load_errors(f"The tokenizer of {own!r} could not be loaded{taken_for}", way_out),
    ):
        encoder = read_tokenizer(own)
    with hub_access(where, "model"), named_load_errors(f"Model {path!r} could not be loaded{taken_for}", way_out):
        model, info = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=torch.float32,
            generation_config=read_generation_config(where),
            use_safetensors=True,
            output_loading_info=True,
            # A weight of another size is an error by `require_whole_load`, which names it.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    require_language_model(model.config.architectures, info.get("unexpected_keys", ()), path)
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"Model {path!r} lacks {len(missing)} weights (first: {missing[0]}): they would start at random. "
            "Name a folder that holds the whole language model."
        )
    require_whole_load(model, info, where, f"Model {path!r}")
    require_finite_weights(model, f"Model {path!r}")
    prepare_tokenizer(encoder, pad_token=pad_token, path=tokenizer or path)
    require_ids_have_rows(encoder, model, f"Model {path!r}")
    return prepare_model(model, encoder).to(device), encoder


def require_language_model(architectures: Sequence[str] | None, unexpected: Iterable[str], path: str) -> None:
    """Raise ModelError for a classifier or another model with a head that writes nothing.

    `architectures` are those of its config.json, `unexpected` the names of weights that found no place. Where output
    head and embeddings are one matrix, transformers takes such a model for a language model.
    """
    names = architectures or ()
    other = next((name for name in names if OTHER_HEADS.search(name)), None)
    if other is not None and not any(WRITING_HEADS.search(name) for name in names):
        found = f"is a {other} by its config.json"
    else:
        head = next((key for key in sorted(unexpected) if OTHER_WEIGHTS.match(key)), None)
        if head is None:
            return
        found = f"holds the weight {head}, which is the head of a classifier or a reward model"
    raise ModelError(
        f"Model {path!r} {found}: it was trained to score texts, not to write them. Name the language model that it "
        "was made from; to use it as a reward, name it in ppo.rewards ({type: classifier} or {type: model})."
    )


def prepare_tokenizer(tokenizer: Any, *, pad_token: str | None, path: str) -> None:
    """Set the pad token in place if one is named; check that pad and end-of-sequence exist."""
    if pad_token is not None:
        known = tokenizer.get_vocab()
        if pad_token not in known:
            raise TokenizerError(
                f"model.pad_token={pad_token!r} is not in the vocabulary of {path!r}: a new token would need a new "
                f"embedding row. Use an existing one, such as {tokenizer.eos_token!r}."
            )
        tokenizer.pad_token = pad_token
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"The tokenizer of {path!r} has no end-of-sequence token: answers could never end themselves. "
            "Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        raise TokenizerError(
            f"The tokenizer of {path!r} has no pad token: a saved model could not be used on batches. Set "
            f"model.pad_token to an existing token, such as {tokenizer.eos_token!r} (safe here: masks come from "
            "lengths, never from comparing ids with the pad id)."
        )


def prepare_model(model: Any, tokenizer: Any) -> Any:
    """Switch dropout off for good and tell the config which token pads."""
    model.config.pad_token_id = tokenizer.pad_token_id
    # The embedding that is marked as padding gets no gradient: where EOS pads, it could never be learned.
    model.get_input_embeddings().padding_idx = None
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    mend_generation_settings(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    freeze_fixed(model)
    return model.eval()


def stop_ids_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end an answer: the tokenizer's and those of the generation config that the model can say."""
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ids = dict.fromkeys([tokenizer.eos_token_id, *listed])
    rows = model.get_input_embeddings().weight.shape[0]
    return tuple(i for i in ids if i is not None and 0 <= i < rows)


def context_of(model: Any) -> int:
    """Longest sequence in tokens that the model reads: it has positions for it, and they are the same in any batch."""
    config, limit = model.config, rope_limit(model)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value if limit is None else min(value, limit)
    return 1 << 30 if limit is None else limit
