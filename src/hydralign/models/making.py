"""Make a language model from scratch: a byte-level BPE tokenizer trained on given texts, random weights.

The tokenizer knows every byte, so no text is unknown to it, and its pad token is distinct from its
end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hydralign.errors import ModelError
from hydralign.models.loading import prepare_model

EOS, PAD = "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens; `<eos>` and `<pad>` are the first two."""
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def make_model(tokenizer: Any, *, family: str, layers: int, width: int, heads: int, context: int, seed: int = 0) -> Any:
    """A gpt2 or llama model with random weights for this tokenizer, fp32, dropout off.

    Equal seeds give equal weights; the global random state is left as it was.
    """
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "gpt2":
        config: Any = GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_positions=context,
            bos_token_id=tokenizer.eos_token_id,
            **special,
        )
        build: Any = GPT2LMHeadModel
    elif family == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=-(-8 * width // 3 // 16) * 16,
            num_attention_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            **special,
        )
        build = LlamaForCausalLM
    else:
        raise ModelError(f"family={family!r} cannot be made from scratch: only its sizes are known for gpt2 and llama.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare_model(build(config), tokenizer)
