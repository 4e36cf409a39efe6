"""FLAN-T5: parameter counts of the base size, and a folder as transformers 4.46 wrote it, with an output head of its
own that a config of transformers 5 no longer tells from a tied one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from hydralign.config.model import LoraForm
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.forms.build import load_policy
from hydralign.models.forms.lora import adapt
from hydralign.models.heads.value import ValueHead
from hydralign.models.policy import Policy
from hydralign.runs.plans import parameter_line
from hydralign.testing import TEXT
from hydralign.types import TokenBatch
from tests.models.encoder_decoders import T5, new_encoder_decoder

PROMPT, ANSWER, START = [5, 6, 7, 0], [8, 9, 3], 1
SHARED_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def with_own_head(config: T5Config) -> Any:
    """The model on the meta device, its head untied as FLAN-T5's weights are."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def test_base_size_has_1_41_percent_in_adapters_of_rank_32_and_769_parameters_in_its_value_head() -> None:
    config = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = with_own_head(config)
    with torch.device("meta"):
        peft = adapt(model, LoraForm(rank=32, alpha=32, targets=("q", "v")), seed=0)
        head = ValueHead(model.config.hidden_size)
    adapters = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    # 12 · 32 · (2 · (768 + 768)) in each of encoder, self-attention and cross-attention.
    learned, whole = (sum(p.numel() for p in parts) for parts in (adapters.values(), peft.parameters()))
    assert learned == 3 * 12 * 32 * 2 * (768 + 768) == 3_538_944
    assert whole == 251_116_800
    assert round(100 * learned / whole, 2) == 1.41
    trained = adapters | {f"value_head.{name}": p for name, p in head.named_parameters()}
    frozen = [p for p in peft.parameters() if not p.requires_grad]
    assert parameter_line(trained, frozen) == (
        "parameters 3,539,713 trained (769 of them in the value head), 247,577,856 frozen"
    )
    with torch.device("meta"):
        decoder = adapt(with_own_head(config), LoraForm(rank=32, targets=("q", "v"), decoder_only=True), seed=0)
    assert sum(p.numel() for p in decoder.parameters() if p.requires_grad) == 3_538_944 * 2 // 3


@pytest.fixture(params=[False, True], ids=["once", "with-copies"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What transformers 4.46 writes of a FLAN-T5; checkpoints from before hold the embeddings three times."""
    model = new_encoder_decoder("flan-t5")
    model.save_pretrained(tmp_path / "flan")
    state = load_file(tmp_path / "flan/model.safetensors")
    assert {"shared.weight", "lm_head.weight"} < state.keys()
    state = {name: value for name, value in state.items() if name not in SHARED_COPIES}
    if request.param:
        state |= {name: state["shared.weight"].clone() for name in SHARED_COPIES}
    save_file(state, tmp_path / "flan/model.safetensors", metadata={"format": "pt"})
    config = {
        **T5, "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
        "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "dropout_rate": 0.1,
        "classifier_dropout": 0.0, "initializer_factor": 1.0, "layer_norm_epsilon": 1e-6, "use_cache": True,
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.46.3",
    }  # fmt: skip
    (tmp_path / "flan/config.json").write_text(json.dumps(config))
    generation = {"_from_model_config": True, "decoder_start_token_id": START, "eos_token_id": 0, "pad_token_id": 1}
    (tmp_path / "flan/generation_config.json").write_text(json.dumps(generation | {"transformers_version": "4.46.3"}))
    train_tokenizer([TEXT] * 3, vocabulary=300, family="t5").save_pretrained(tmp_path / "flan")
    return tmp_path / "flan"


def own_logits(path: Path) -> tuple[Tensor, Tensor]:
    """(logits_RV of plain transformers, states_RD that its head reads)."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    inputs = {"input_ids": torch.tensor([PROMPT]), "decoder_input_ids": torch.tensor([[START, *ANSWER[:-1]]])}
    with torch.no_grad():
        made = model(**inputs, output_hidden_states=True)
    return made.logits[0], made.decoder_hidden_states[-1][0]


def logprobs(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.evaluate(TokenBatch.of([PROMPT], [ANSWER])).logprobs_BR[0]


def of_answer(logits_RV: Tensor) -> Tensor:
    return logits_RV.log_softmax(-1).gather(1, torch.tensor(ANSWER)[:, None])[:, 0]


@pytest.mark.parametrize("form", ["full", "lora", "hydra"])
def test_folder_of_transformers_4_is_read_with_its_own_head_and_no_scaling(form: str, folder: Path) -> None:
    logits_RV, states_RD = own_logits(folder)
    state = load_file(folder / "model.safetensors")
    torch.testing.assert_close(logits_RV, states_RD @ state["lm_head.weight"].T, atol=1e-5, rtol=1e-5)
    assert (states_RD @ (state["lm_head.weight"] - state["shared.weight"]).T).abs().max() > 0.1
    policy = load_policy(str(folder), form=form)
    torch.testing.assert_close(logprobs(policy), of_answer(logits_RV), atol=1e-5, rtol=1e-5)
    assert policy.whole.head.scale == 1.0
    assert policy.whole.head.linear.weight is not policy.model.get_input_embeddings().weight


@pytest.mark.parametrize("form", ["full", "hydra"])
def test_saved_again_it_still_tells_every_version_that_its_head_is_not_tied(
    form: str, folder: Path, tmp_path: Path
) -> None:
    load_policy(str(folder), form=form).save(tmp_path / "again")
    # transformers 4 goes by this setting alone: with true it would read out with the embeddings, scaled.
    assert json.loads((tmp_path / "again/config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(own_logits(tmp_path / "again")[0], own_logits(folder)[0], atol=1e-5, rtol=1e-5)


def test_a_tied_head_and_one_that_is_scaled_keep_their_setting(tmp_path: Path) -> None:
    words = train_tokenizer([TEXT] * 3, vocabulary=300, family="t5")
    scaled = new_encoder_decoder("t5")
    scaled.lm_head.weight = torch.nn.Parameter(torch.randn_like(scaled.shared.weight))
    for name, model in {"tied": new_encoder_decoder("t5"), "scaled": scaled}.items():
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        policy = load_policy(str(tmp_path / name))
        assert policy.whole.head.scale == pytest.approx(32**-0.5)
        policy.save(tmp_path / f"{name}-again")
        assert json.loads((tmp_path / f"{name}-again/config.json").read_text())["tie_word_embeddings"] is True
        before, after = (own_logits(tmp_path / each)[0] for each in (name, f"{name}-again"))
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
