"""Tiny random encoder–decoders of several families, far from their own starting point."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

T5 = {
    "vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 1, "pad_token_id": 1, "eos_token_id": 0, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}  # fmt: skip
BART = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "decoder_start_token_id": 0, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5),
    "t5-gated": ("t5", {**T5, "feed_forward_proj": "gated-gelu"}),
    "flan-t5": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {**T5, "feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 2}),
    "bart": ("bart", BART),
    "mbart": ("mbart", {**BART, "scale_embedding": True}),
}


def new_encoder_decoder(family: str, **changes: Any) -> Any:
    """A random model: spread matrices, norms and biases that do something; flan-t5's head is a matrix of its own."""
    kind, settings = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **{**settings, **changes})).eval()
        if family == "flan-t5":
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape)) if parameter.dim() == 1 else parameter.normal_(
                    0, 0.2
                )
            if hasattr(model, "final_logits_bias"):
                model.final_logits_bias.normal_()
    return model
