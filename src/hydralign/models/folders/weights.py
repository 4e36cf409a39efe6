"""Checks of loaded weights: finite numbers, and an embedding row for every id that the tokenizer can give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from hydralign.errors import ModelError, TokenizerError


def require_finite_tensors(named: Iterable[tuple[str, Tensor]], subject: str) -> None:
    """Raise ModelError naming the first tensor that holds NaN or infinity. Reads every weight once."""
    for name, tensor in named:
        # A sum of finite numbers may overflow, so only a suspicious one is looked at number by number.
        if tensor.is_meta or not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach().sum())):
            continue
        bad = int((~torch.isfinite(tensor.detach())).sum())
        if bad:
            raise ModelError(
                f"{subject}: {bad:,} of {tensor.numel():,} numbers in the weight {name} are NaN or infinite, so every "
                "output would be. The weights are damaged: save or download them again, or name an earlier checkpoint."
            )


def require_finite_weights(model: Any, subject: str) -> None:
    """`require_finite_tensors` over what a model's file holds: its parameters, and buffers that are saved with them."""
    require_finite_tensors(model.named_parameters(), subject)
    saved = model.state_dict().keys()
    require_finite_tensors(((name, buffer) for name, buffer in model.named_buffers() if name in saved), subject)


def require_finite_file(file: Path) -> None:
    """`require_finite_tensors` over the tensors of a safetensors file."""
    with safe_open(file, framework="pt") as tensors:
        require_finite_tensors(((name, tensors.get_tensor(name)) for name in tensors.keys()), str(file))  # noqa: SIM118


def require_ids_have_rows(tokenizer: Any, model: Any, subject: str) -> None:
    """Raise TokenizerError when the tokenizer can give ids for which the model has no embedding row.

    Special tokens that neither have a role (such as padding) nor stand in the chat template are let pass: published
    text models keep the image tokens of their family so.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    template = str(getattr(tokenizer, "chat_template", None) or "")
    roles = {
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer.cls_token,
        tokenizer.sep_token,
        tokenizer.mask_token,
    }
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = sorted(
        (index, token)
        for token, index in vocabulary.items()
        if index >= rows and (token not in special or token in roles or token in template)
    )
    if beyond:
        index, token = beyond[0]
        raise TokenizerError(
            f"{subject}: its tokenizer gives {len(beyond)} ids that the model has no embedding for (first: id {index}, "
            f"token {token!r}; the tokenizer has {len(vocabulary):,} tokens, the model {rows:,} rows): such a token "
            "cannot be read. Name the tokenizer that belongs to the model, or enlarge the model with "
            "resize_token_embeddings and save both."
        )


def embedding_rows(config: Any) -> int | None:
    """How many token ids a model with this config reads, those below the number; None where it does not say."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def require_ids_can_be_read(
    encoded: Iterable[Sequence[int] | NDArray[np.int32]], tokenizer: Any, rows: int | None, subject: str
) -> None:
    """Raise TokenizerError where a text has an id for which the model has no embedding row; `rows` None: unknown.

    `require_ids_have_rows` lets special tokens pass that only a text which spells them out can bring in.
    """
    largest = max((int(np.max(ids)) for ids in encoded if len(ids)), default=-1)
    if rows is not None and largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise TokenizerError(
            f"{subject} spells {token!r} (id {largest}), a special token for which the model has no embedding (it has "
            f'{rows:,} rows): such a text cannot be read. Take it out with replace: {{{json.dumps(token)}: ""}} beside '
            "the source of the data."
        )
