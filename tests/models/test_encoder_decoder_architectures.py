"""Other encoder–decoders of transformers, tiny and random: read as they read themselves, or refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.errors import ModelError
from hydralign.methods.start_checks import check_start
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.forms.build import make_policy
from hydralign.rollout import collect
from hydralign.testing import TEXT, LengthReward
from hydralign.types import SamplingParams, TokenBatch
from tests.models.encoder_decoders import BART, T5, new_encoder_decoder

FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(rank=2, targets=("q", "v", "q_proj", "v_proj")),
    "hydra": HydraForm(unfrozen_layers=1),
}
PROPHETNET = {
    "vocab_size": 300, "hidden_size": 32, "encoder_ffn_dim": 64, "num_encoder_layers": 2, "decoder_ffn_dim": 64,
    "num_encoder_attention_heads": 4, "num_decoder_layers": 3, "num_decoder_attention_heads": 4, "ngram": 2,
    "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
FSMT = {
    "langs": ["en", "de"], "src_vocab_size": 300, "tgt_vocab_size": 300, "d_model": 32, "encoder_layers": 2,
    "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip
READ: dict[str, dict[str, Any]] = {
    "umt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "longt5": {**T5, "local_radius": 4, "encoder_attention_type": "local"},
    "switch_transformers": {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "pegasus": BART,
    "marian": BART,
    "blenderbot": BART,
    "led": {**BART, "attention_window": 8, "max_encoder_position_embeddings": 64},
    "bigbird_pegasus": {**BART, "attention_type": "original_full"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "m2m_100": (BART, "differ from its own by"),
    "prophetnet": (PROPHETNET, "cannot be read as an encoder and a decoder with one output head"),
    "fsmt": (FSMT, "cannot be read as an encoder and a decoder with one output head"),
}
TEXTS = ["a small text of words", "this", "the other thing and that, and more"]


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer that ends what an encoder reads."""
    return train_tokenizer([TEXT] * 3, vocabulary=300, family="t5")


def new_model(kind: str, settings: dict[str, Any]) -> Any:
    """Random and spread, so that what is left out shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn(parameter.shape)) if parameter.dim() == 1 else parameter.normal_(
                    0, 0.2
                )
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", READ)
def test_one_that_is_read_samples_what_it_evaluates_and_starts_at_its_reference(
    kind: str, form: str, words: Any
) -> None:
    policy = make_policy(new_model(kind, READ[kind]), words, form=FORMS[form])
    plan = SamplingParams(max_new_tokens=12, min_new_tokens=8, temperature=0.8, seed=3)
    experience = collect(policy, TEXTS, LengthReward(3), plan, micro_batch_size=2)
    measured = check_start(policy, experience, fresh=True, micro_batch_size=2)
    assert measured["sampler/logprob_drift_max"] < 1e-4


@pytest.mark.parametrize("kind", READ)
def test_long_prompts_of_unequal_lengths_are_read_as_each_is_alone(kind: str, words: Any) -> None:
    """Longer than a window or a block: short ones would hide it."""
    generator = torch.Generator().manual_seed(1)
    prompts, answers = (
        [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]
        for lengths in ((57, 30, 6), (20, 5, 21))
    )
    model, policy = new_model(kind, READ[kind]), make_policy(new_model(kind, READ[kind]), words)
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        ours_BR = policy.evaluate(TokenBatch.of(prompts, answers)).logprobs_BR
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *answer[:-1]]])}
            own_RV = model(**inputs).logits[0].log_softmax(-1)
            own_R = own_RV.gather(1, torch.tensor(answer)[:, None])[:, 0]
            torch.testing.assert_close(ours_BR[row, : len(answer)], own_R, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_one_that_is_not_is_refused_with_encoder_decoders_that_are(kind: str, words: Any) -> None:
    settings, cause = REFUSED[kind]
    with pytest.raises(ModelError, match=cause) as caught:
        make_policy(new_model(kind, settings), words)
    assert "such as t5 (flan-t5 too), mt5, umt5, bart, mbart, pegasus, marian or led" in str(caught.value)
    assert "gpt2" not in str(caught.value)


def test_two_stacks_joined_by_hand_are_refused(words: Any) -> None:
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    stacks = BertConfig(**shape), BertConfig(**shape, is_decoder=True, add_cross_attention=True)
    ids = {"decoder_start_token_id": 0, "pad_token_id": 1}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*stacks, **ids)
    with pytest.raises(ModelError, match="EncoderDecoderModel cannot be read as an encoder and a decoder with one"):
        make_policy(EncoderDecoderModel(config), words)


def test_attention_that_the_first_short_prompt_changes_for_good_is_refused(words: Any) -> None:
    settings = {**BART, "attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    with pytest.raises(ModelError, match="attention_type 'block_sparse': .* 'original_full' in its config.json"):
        make_policy(new_model("bigbird_pegasus", settings), words)


class AddsOfItsOwn(nn.Module):
    """A decoder layer's part that keeps what the first layer read and adds it in the last one."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        decoder.block[0].register_forward_pre_hook(lambda _, args: self.seen.__setitem__(slice(None), [args[0]]))
        decoder.block[-1].register_forward_pre_hook(lambda _, args: (args[0] + self.seen[0], *args[1:]))


def test_layers_that_share_more_than_their_states_are_not_cut_but_trained_whole(words: Any) -> None:
    model = new_encoder_decoder("t5")
    AddsOfItsOwn(model.get_decoder())
    with pytest.raises(ModelError, match=r"cut below its top 1 .* differs from the whole by .* \{type: full\} or"):
        make_policy(model, words, form=FORMS["hydra"])
    make_policy(model, words, form=FORMS["full"])


def test_logits_that_are_changed_behind_the_head_are_refused(words: Any) -> None:
    model = new_encoder_decoder("bart")
    model.register_forward_hook(lambda _, __, made: setattr(made, "logits", made.logits.tanh()))
    with pytest.raises(ModelError, match=r"BartForConditionalGeneration: logits from its body and its head differ"):
        make_policy(model, words)
