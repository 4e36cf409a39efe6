"""Make a model from scratch: a byte-level BPE tokenizer trained on given texts, random weights.

A language model, or a sequence classifier with named outputs; of one family both have the same trunk.

The tokenizer knows every byte, so no text is unknown to it, and its pad token is distinct from its
end-of-sequence token. It adds no [CLS]: a bert classifier is read at the text's first token, which sees all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hydralign.encoder_input import mark_for_encoder
from hydralign.errors import ModelError
from hydralign.models.folders.loading import prepare_model

EOS, PAD = "<eos>", "<pad>"

ENCODER_DECODERS: Mapping[str, Any] = {"t5": T5ForConditionalGeneration, "bart": BartForConditionalGeneration}
LANGUAGE_MODELS: Mapping[str, Any] = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM, **ENCODER_DECODERS}
CLASSIFIERS: Mapping[str, Any] = {
    "gpt2": GPT2ForSequenceClassification,
    "llama": LlamaForSequenceClassification,
    "bert": BertForSequenceClassification,
}


def train_tokenizer(texts: Iterable[str], *, vocabulary: int, family: str = "gpt2") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens; `<eos>` and `<pad>` are the first two.

    For a `family` with an encoder it ends every text with `<eos>`, as T5's does: what an encoder reads is whole.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if family in ENCODER_DECODERS:
        ends = tokenizer.token_to_id(EOS)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, ends)])
    trained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)
    if family in ENCODER_DECODERS:
        mark_for_encoder(trained)
    return trained


def make_model(tokenizer: Any, *, family: str, layers: int, width: int, heads: int, context: int, seed: int = 0) -> Any:
    """A gpt2, llama, t5 or bart model with random weights for this tokenizer, fp32, dropout off.

    An encoder and a decoder have `layers` each; t5 is shaped like its version 1.1 with tied embeddings. Equal seeds
    give equal weights; the global random state is left as it was.
    """
    require_writing_family(family)
    if family in ENCODER_DECODERS:
        mark_for_encoder(tokenizer, context)
    config = _config(tokenizer, family=family, layers=layers, width=width, heads=heads, context=context)
    return _with_random_weights(LANGUAGE_MODELS[family], config, tokenizer, seed)


def require_writing_family(family: str) -> None:
    """Raise ModelError for a family of which no language model can be made."""
    if family == "bert":
        raise ModelError(
            "family='bert' cannot be a language model: it reads both ways, so it has no next token to predict. "
            "Use gpt2, llama, t5 or bart to write, bert only to classify."
        )


def make_classifier(
    tokenizer: Any,
    *,
    family: str,
    layers: int,
    width: int,
    heads: int,
    context: int,
    labels: Sequence[str],
    seed: int = 0,
) -> Any:
    """A gpt2, llama or bert sequence classifier with one output per label, in this order; fp32, dropout off.

    A single label makes a reward model. Equal seeds give equal weights; the global random state is left as it was.
    Raises ModelError for labels that are missing or equal, and for other families.
    """
    config = _config(tokenizer, family=family, layers=layers, width=width, heads=heads, context=context)
    name_outputs(config, labels)
    return _with_random_weights(CLASSIFIERS[family], config, tokenizer, seed)


def name_outputs(config: Any, labels: Sequence[str]) -> None:
    """Set a config's outputs to these labels in place. Raises ModelError when there are none or two are equal."""
    if not labels or len(set(labels)) != len(labels):
        raise ModelError(
            f"labels={list(labels)}: outputs are found by name, so there must be at least one and no two alike. "
            "Name each label once."
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: column for column, label in enumerate(labels)}
    config.problem_type = "single_label_classification" if len(labels) > 1 else None


def _config(tokenizer: Any, *, family: str, layers: int, width: int, heads: int, context: int) -> Any:
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    if family == "gpt2":
        return GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_positions=context,
            activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
            **shared,
        )
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
    }
    if family == "t5":
        return T5Config(
            d_model=width,
            d_kv=width // heads,
            d_ff=_gated_width(width),
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=tokenizer.pad_token_id,
            n_positions=context,
            **shared,
        )
    if family == "bart":
        each = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * width}
        both = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in each.items()}
        start = tokenizer.eos_token_id
        more = {"decoder_start_token_id": start, "forced_eos_token_id": None, "max_position_embeddings": context}
        return BartConfig(d_model=width, **both, **more, **shared)
    if family == "llama":
        return LlamaConfig(intermediate_size=_gated_width(width), tie_word_embeddings=True, **sizes, **shared)
    if family == "bert":
        return BertConfig(intermediate_size=4 * width, **sizes, **shared)
    raise ModelError(
        f"family={family!r} cannot be made from scratch: only its sizes are known for {', '.join(CLASSIFIERS)}."
    )


def _gated_width(width: int) -> int:
    """Of a gated feed-forward block with about as many parameters as a plain one of four times the width."""
    return -(-8 * width // 3 // 16) * 16


def _with_random_weights(build: Any, config: Any, tokenizer: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare_model(build(config), tokenizer)
