"""Encoder–decoders as policies in every form: start checks, one trunk, invariances, folders, what an update moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.encoder_input import encoder_limit, feeds_encoder
from hydralign.errors import ModelError
from hydralign.methods.advantages import estimate
from hydralign.methods.policy_update import update
from hydralign.methods.start_checks import check_start
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.forms.build import load_frozen_policy, load_policy, make_policy
from hydralign.models.policy import Policy
from hydralign.rollout import collect
from hydralign.testing import TEXT
from hydralign.training.optimizer import make_optimizer
from hydralign.types import Experience, SamplingParams, TokenBatch
from tests.models.encoder_decoders import FAMILIES, new_encoder_decoder

FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(rank=4),
    "decoder-lora": LoraForm(rank=4, decoder_only=True),
    "top-lora": LoraForm(rank=4, unfrozen_layers=1),
    "hydra": HydraForm(unfrozen_layers=1),
    "hydra-values": HydraForm(unfrozen_layers=1, value="branch"),
}
TEXTS = ["a small text of words", "this", "the other thing and that, and more"]
PLAN = SamplingParams(max_new_tokens=9, temperature=0.8, min_new_tokens=2, seed=3)


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer that ends what an encoder reads."""
    return train_tokenizer([TEXT] * 3, vocabulary=300, family="t5")


def new_policy(family: str, form: str, words: Any, **settings: Any) -> Policy:
    return make_policy(new_encoder_decoder(family), words, form=FORMS[form], **settings)


def scored(completions: list[str]) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def learnt(policy: Policy, **settings: Any) -> tuple[Experience, dict[str, float]]:
    experience = collect(policy, TEXTS, scored, PLAN, micro_batch_size=2)
    optimizer = make_optimizer(policy.trained(), type="sgd", learning_rate=0.05)
    return experience, update(
        policy, optimizer, experience, estimate(experience), epochs=2, minibatches=1, micro_batch_size=2, **settings
    )


CASES = [("t5", form) for form in FORMS] + [
    ("t5-gated", "hydra"),
    ("flan-t5", "lora"),
    ("flan-t5", "hydra"),
    ("mt5", "hydra"),
    ("bart", "full"),
    ("bart", "decoder-lora"),
    ("bart", "hydra"),
    ("mbart", "hydra"),
]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_policy_starts_at_its_reference_and_learns(family: str, form: str, words: Any) -> None:
    policy = new_policy(family, form, words)
    experience = collect(policy, TEXTS, scored, PLAN, micro_batch_size=2)
    measured = check_start(policy, experience, fresh=True, micro_batch_size=2)
    assert measured["sampler/logprob_drift_max"] < 1e-4
    rows = experience.rollout.rows
    assert rows.prompt_lengths_B.tolist() == [len(words(text).input_ids) for text in TEXTS]
    assert (experience.old_logprobs_BR[:, 0] < 0).all()  # the first token has a probability
    before, start_BR = {name: p.detach().clone() for name, p in policy.trained().items()}, reference(policy, rows)
    _, stats = learnt(policy)
    moved = {name for name, p in policy.trained().items() if not torch.equal(p, before[name])}
    assert moved
    if form in ("hydra", "top-lora", "hydra-values"):
        assert stats["trunk_passes_per_token"] == 1.0
        assert not any("encoder." in name.replace("decoder", "") for name in moved)
    if form == "decoder-lora":
        assert stats["trunk_passes_per_token"] == pytest.approx(
            int(rows.prompt_lengths_B.sum()) / int(rows.lengths_B.sum())
        )
        assert not any("encoder." in name.replace("decoder", "") for name in policy.trained())
    assert torch.equal(reference(policy, rows), start_BR)
    with torch.no_grad():
        assert (policy.evaluate(bare(rows)).logprobs_BR - start_BR).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("family", "form"),
    [("t5", "full"), ("flan-t5", "lora"), ("t5", "hydra"), ("bart", "decoder-lora"), ("bart", "hydra")],
)
def test_in_bf16_a_policy_starts_at_its_reference_too(family: str, form: str, words: Any) -> None:
    policy = new_policy(family, form, words, precision="bf16")
    experience = collect(policy, TEXTS, scored, PLAN, micro_batch_size=2)
    check_start(policy, experience, fresh=True, micro_batch_size=2)
    assert policy.whole.head.scale == (pytest.approx(32**-0.5) if family == "t5" else 1.0)


def bare(rows: TokenBatch) -> TokenBatch:
    return rows.with_trunk(None)


def reference(policy: Policy, rows: TokenBatch) -> Tensor:
    return policy.reference_logprobs(bare(rows))


@pytest.mark.parametrize(("family", "form"), [("t5", "full"), ("t5", "hydra"), ("bart", "hydra"), ("bart", "lora")])
def test_neither_padding_nor_the_rows_beside_it_change_a_row(family: str, form: str, words: Any) -> None:
    policy = new_policy(family, form, words)
    rows = collect(policy, TEXTS, scored, PLAN).rollout.rows
    with torch.no_grad():
        together = policy.evaluate(rows)
        for row in range(len(rows)):
            for few in (rows, bare(rows)):
                alone = policy.evaluate(few.select(torch.tensor([row])))
                for ours, theirs in zip(alone, together, strict=True):
                    assert ours is not None
                    assert theirs is not None
                    torch.testing.assert_close(ours[0], theirs[row, : ours.shape[1]], atol=1e-5, rtol=1e-5)


def test_the_first_token_s_gradient_is_that_of_its_own_log_probability(words: Any) -> None:
    policy = new_policy("t5", "full", words)
    batch = TokenBatch.of([[5, 6, 0]], [[9]])
    policy.evaluate(batch).logprobs_BR.sum().backward()
    ours = {name: p.grad.clone() for name, p in policy.form.trained().items() if p.grad is not None}
    model = new_encoder_decoder("t5")
    logits_V = model(input_ids=torch.tensor([[5, 6, 0]]), decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
    logits_V.log_softmax(-1)[9].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)
    assert ours["encoder.block.0.layer.0.SelfAttention.q.weight"].abs().max() > 0


@pytest.mark.parametrize("form", ["full", "hydra"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_gives_transformers_the_same_logits(family: str, form: str, words: Any, tmp_path: Path) -> None:
    policy = new_policy(family, form, words)
    learnt(policy)
    policy.save(tmp_path / "model")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 0]]), "decoder_input_ids": torch.tensor([[1, 7, 8]])}
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, policy.model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS[0]).input_ids == words(TEXTS[0]).input_ids
    again = load_policy(str(tmp_path / "model"), form=FORMS[form])
    rows = collect(policy, TEXTS, scored, PLAN).rollout.rows
    with torch.no_grad():
        pairs = zip(again.evaluate(bare(rows)), policy.evaluate(rows), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_saved_adapter_goes_on_and_merges(words: Any, tmp_path: Path) -> None:
    model = new_encoder_decoder("flan-t5")
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), form=FORMS["decoder-lora"])
    learnt(policy)
    policy.save(tmp_path / "adapter")
    rows = bare(collect(policy, TEXTS, scored, PLAN).rollout.rows)
    with torch.no_grad():
        wanted_BR = policy.evaluate(rows).logprobs_BR
        merged = load_frozen_policy(str(tmp_path / "adapter"))
        torch.testing.assert_close(merged.evaluate(rows).logprobs_BR, wanted_BR, atol=1e-5, rtol=1e-5)
        form = LoraForm(adapter=str(tmp_path / "adapter"), decoder_only=True)
        going_on = load_policy(str(tmp_path / "base"), form=form)
        torch.testing.assert_close(going_on.evaluate(rows).logprobs_BR, wanted_BR, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(going_on.reference_logprobs(rows), wanted_BR, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning", "ignore:Input and output embeddings are no longer tied"
)
@pytest.mark.parametrize("form", ["lora", "decoder-lora"])
@pytest.mark.parametrize("family", ["t5", "flan-t5", "mt5", "bart"])
def test_a_saved_adapter_gives_peft_the_same_logits_and_merged_too(
    family: str, form: str, words: Any, tmp_path: Path
) -> None:
    new_encoder_decoder(family).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), form=FORMS[form])
    learnt(policy)
    policy.save(tmp_path / "adapter")
    inputs = {"input_ids": torch.tensor([[5, 6, 0]]), "decoder_input_ids": torch.tensor([[1, 7, 8]])}
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        wanted, start = policy.model(**inputs).logits, base(**inputs).logits
        assert (wanted - start).abs().max() > 1e-4
        plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(plain(**inputs).logits, wanted, atol=1e-5, rtol=1e-5)
        plain.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(**inputs).logits, wanted, atol=1e-5, rtol=1e-5)


def test_adapters_stay_in_the_part_that_is_named(words: Any) -> None:
    model = new_encoder_decoder("t5")
    form = LoraForm(decoder_only=True, targets=("encoder.block.0.layer.0.SelfAttention.q",))
    with pytest.raises(ModelError, match=r"encoder.block.0.* not in the decoder.*name other targets"):
        make_policy(model, words, form=form)


def test_a_tokenizer_learns_from_the_model_that_an_encoder_reads(words: Any) -> None:
    words.feeds_encoder = False
    make_policy(new_encoder_decoder("bart"), words, form=FORMS["full"])
    assert feeds_encoder(words)
    assert encoder_limit(words) == 64
    make_policy(new_encoder_decoder("t5"), words, form=FORMS["full"])
    assert encoder_limit(words) is None


def test_a_causal_model_has_no_encoder_to_leave_out(tokenizer: Any) -> None:
    from hydralign.testing import tiny_policy

    with pytest.raises(ModelError, match="decoder_only: GPT2LMHeadModel has no encoder"):
        tiny_policy(form=FORMS["decoder-lora"], tokenizer=tokenizer)


def test_every_family_is_a_policy_s(words: Any) -> None:
    assert {family for family, _ in CASES} == set(FAMILIES)
