"""Tokenizers of every kind of decoder, made without a network from one short text."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "the capital of France is Paris, the film was good and playing is fun: an end, a bad end. "
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama_tokenizer(*, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback, as Llama 2, Mistral, TinyLlama and Phi-3 have it."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    trained.train_from_iterator([TEXT] * 4, trainer)
    core = _with_ordinary_words(trained)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(core)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece unigram with metaspaces, as T5 has it."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([TEXT] * 4, trainer)
    return _wrapped(core)


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words and their continuations (##ing), as BERT has them."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    words = ["the", "capital", "of", "France", "is", "Paris", "play", "##ing", "##ed", "film", ",", ".", "fun"]
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=[*SPECIAL, *words], show_progress=False)
    core.train_from_iterator([TEXT], trainer)
    return _wrapped(_with_ordinary_words(core))


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and Llama 3 have it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    return _wrapped(core)


def _with_ordinary_words(core: Any) -> Any:
    """The same tokenizer with nothing but `SPECIAL` among its added tokens: a trainer puts given words there too."""
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(state))


def _wrapped(core: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
