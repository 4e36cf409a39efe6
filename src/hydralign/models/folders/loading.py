"""Load a transformers language model and its tokenizer, with the checks that spare a user a wrong run.

No remote code, safetensors only; the network is used only when `path` is no local folder.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hydralign.encoder_input import mark_for_encoder
from hydralign.errors import ModelError, TokenizerError
from hydralign.models.backbones.rope import rope_limit
from hydralign.models.fixed import freeze_fixed
from hydralign.models.folders.generation_settings import (
    mend_generation_settings,
    read_generation_config,
    say_ignored_settings,
)
from hydralign.models.folders.load_errors import CONTEXTS, check_model_files, loading, named_load_errors
from hydralign.models.folders.load_report import require_whole_load
from hydralign.models.folders.tokenizers import NO_LIMIT, read_tokenizer
from hydralign.models.folders.weights import require_finite_weights, require_ids_have_rows

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_HEADS = re.compile("Classification|QuestionAnswering|MultipleChoice|NextSentence|Reward|ForScor|ForRegression")
"""Classes of models, as config.json names them, whose head writes nothing."""
WRITING_HEADS = re.compile("CausalLM|LMHead|ConditionalGeneration|DoubleHeads")
OTHER_WEIGHTS = re.compile(r"(score|classifier|classification_head|qa_outputs|reward_head|regression_head)\.")
"""Names of the weights of such heads."""


def looks_local(path: str) -> bool:
    """Whether a path has the form of a folder's, which no hub id has."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


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
            if looks_local(path):
                raise ModelError(
                    f"Model folder {path!r} does not exist: there is nothing to load (looked at {folder.absolute()}). "
                    f"{_nearest(folder)}Check the path, or name a hub id such as openai-community/gpt2."
                )
            return None
    raise ModelError(
        f"model path {path!r} is a file: a model is a folder with config.json and weights. Name the folder that "
        f"it lies in, such as {str(folder.parent)!r}, if that was saved by save_pretrained."
    )


def check_folder(path: str, *, whole: bool = False) -> str:
    """The expanded path, or the hub id. Raises ModelError when a local folder is missing, incomplete or damaged.

    `whole` refuses an adapter, which a reward cannot be read from.
    """
    folder = find_folder(path)
    if folder is None:
        return path
    if not (folder / "config.json").exists():
        if not (folder / "adapter_config.json").exists():
            raise ModelError(
                f"Model folder {path!r} has no config.json: transformers cannot tell what it is. "
                "Point to a folder written by save_pretrained."
            )
        if whole:
            raise ModelError(
                f"{path!r} is a PEFT adapter: a reward needs the whole classifier with its head. "
                "Merge it into its base (merge_and_unload) and save the result."
            )
    if not any((folder / name).exists() for name in (*WEIGHT_FILES, ADAPTER_WEIGHTS)):
        raise ModelError(
            f"Model folder {path!r} has no model.safetensors{describe_other_weights(folder)}: its weights would be "
            "random numbers. Save the model with save_pretrained of transformers 5, which writes safetensors."
        )
    check_model_files(folder)
    return str(folder)


def _nearest(folder: Path) -> str:
    """A sentence that proposes a folder of nearly the same name beside a missing one, if there is one."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    wanted = folder.absolute().relative_to(there).parts[0]
    near = difflib.get_close_matches(wanted, [f.name for f in there.iterdir() if f.is_dir()], n=1, cutoff=0.6)
    return f"Did you mean {str(there / near[0])!r}? " if near else ""


def describe_other_weights(folder: Path) -> str:
    """The weights of other kinds in a folder that holds no safetensors, as a clause in brackets; empty for none."""
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
    path = check_folder(os.fspath(path))
    way_out = "Check that it is a language model with its tokenizer, saved by transformers."
    with loading(f"Model {path!r}", path, way_out):
        kind = writing_kind(AutoConfig.from_pretrained(path, trust_remote_code=False))
    generation = read_generation_config(path)
    model, encoder, report = read_model(kind, path, way_out, tokenizer=tokenizer, generation_config=generation)
    require_language_model(model.config.architectures, report["unexpected_keys"], path)
    prepare_tokenizer(encoder, pad_token=pad_token, path=tokenizer or path)
    check_loaded(model, encoder, report, path)
    if model.config.is_encoder_decoder:
        say_ignored_settings(model)
    return prepare_model(model, encoder).to(device), encoder


def writing_kind(config: Any) -> Any:
    """The Auto class of a language model with this config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def read_model(
    kind: Any, path: str, way_out: str, *, tokenizer: str | None = None, **settings: Any
) -> tuple[Any, Any, Mapping[str, Any]]:
    """(model in fp32, tokenizer, transformers' report on the weights), the model by `kind`, one of transformers' Auto
    classes, from a checked folder or a hub id.

    `tokenizer` is a folder of its own. Raises ModelError, which ends with `way_out`, for whatever fails; what was read
    is judged by `check_loaded`.
    """
    own = tokenizer or path
    with loading(f"Model {path!r}", path, way_out):
        model, report = kind.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            # A weight of another size is an error by `require_whole_load`, which names it.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **settings,
        )
    with loading(f"The tokenizer of {own!r}", own, way_out):
        encoder = read_tokenizer(own)
    return model, encoder, report


def check_loaded(model: Any, tokenizer: Any, report: Mapping[str, Any], path: str, *, new_head: bool = False) -> None:
    """Raise ModelError or TokenizerError unless what `read_model` gave is whole: all weights there and finite, an
    embedding row for every id. With `new_head` the head may be random, and another one in the folder is left out.
    """
    subject = f"Model {path!r}"
    require_whole_load(model, report, path, subject, new_head=new_head)
    require_finite_weights(model, subject)
    require_ids_have_rows(tokenizer, model, subject)


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


def prepare_tokenizer(tokenizer: Any, *, pad_token: str | None, path: str, reads: int | None = None) -> None:
    """Set the pad token in place if one is named; check that pad and end-of-sequence exist. `reads` says that the
    model has an encoder, which reads prompts of so many tokens.
    """
    if reads is not None:
        mark_for_encoder(tokenizer, reads)
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
    """Switch dropout off for good; tell the config what pads, and the tokenizer whether an encoder reads prompts."""
    if model.config.is_encoder_decoder and model.can_generate():
        mark_for_encoder(tokenizer, context_of(model))
    model.config.pad_token_id = tokenizer.pad_token_id
    # The embedding that is marked as padding gets no gradient: where EOS pads, it could never be learned.
    stacks = (model, model.get_encoder(), model.get_decoder()) if model.config.is_encoder_decoder else (model,)
    for stack in stacks:
        # What has no embeddings under that name is refused when it is read.
        if hasattr(stack, "get_input_embeddings"):
            stack.get_input_embeddings().padding_idx = None
    record_own_head(model)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    mend_generation_settings(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    freeze_fixed(model)
    return model.eval()


def record_own_head(model: Any) -> None:
    """Write into the config that an encoder–decoder's head is not tied to its embeddings, where that is so.

    transformers 5 sets `tie_word_embeddings` of T5 and its kin to true and goes by the weights; transformers 4 goes by
    the setting, and would put the embeddings in the head's place. T5's scaling hangs on the same setting, so a model
    that scales keeps it.
    """
    config = model.config
    if not config.is_encoder_decoder or getattr(config, "scale_decoder_outputs", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embedding is not None and head.weight is not embedding.weight:
        config.tie_word_embeddings = False


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
    found = (getattr(model.config, name, None) for name in CONTEXTS)
    positions = next((value for value in found if isinstance(value, int) and value > 0), NO_LIMIT)
    limit = rope_limit(model)
    return positions if limit is None else min(positions, limit)
