"""Reward models: the one encoding, the one read-out, and parity with plain transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hydralign.errors import ModelError, RewardError
from hydralign.rewards import RewardModel, encode, scores

PROMPTS = ["the film was", "a", "the ending was very"]
COMPLETIONS = [" good", " dull film was the dull very bad ending", " bad"]
FINISHED = [True, False, True]
EOS = 4


def test_reward_model_scores_as_transformers_does_alone_and_batched(gpt2_folder: Callable[..., Path]) -> None:
    folder = gpt2_folder()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    got = RewardModel.from_folder(folder)(PROMPTS, COMPLETIONS, FINISHED)
    single = RewardModel.from_folder(folder, batch_size=1)(PROMPTS, COMPLETIONS, FINISHED)
    texts = [p + c + "<eos>" * f for p, c, f in zip(PROMPTS, COMPLETIONS, FINISHED, strict=True)]
    with torch.no_grad():
        batched = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits[:, 0]
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item() for text in texts]
    assert got == pytest.approx(alone, abs=1e-5)
    assert got == pytest.approx(single, abs=1e-5)
    assert got == pytest.approx(batched.tolist(), abs=1e-5)
    assert len({round(score, 3) for score in got}) == 3


def test_reward_model_of_an_encoder_scores_as_transformers_does(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(["score"])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    got = RewardModel.from_folder(folder)(PROMPTS, COMPLETIONS, FINISHED)
    with torch.no_grad():
        for score, prompt, completion in zip(got, PROMPTS, COMPLETIONS, strict=True):
            want = model(**tokenizer(prompt + completion, return_tensors="pt")).logits[0, 0].item()
            assert score == pytest.approx(want, abs=1e-5)


def test_encode_appends_eos_only_if_finished(gpt2_folder: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder())
    assert encode(tokenizer, "the film", " good", True).ids == (8, 7, 5, EOS)
    assert encode(tokenizer, "the film", " good", False).ids == (8, 7, 5)


def test_encode_overrules_a_tokenizer_that_appends_eos_itself(gpt2_folder: Callable[..., Path]) -> None:
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", EOS)]
    )
    assert tokenizer("good")["input_ids"] == [5, EOS]
    assert encode(tokenizer, "", "good", True).ids == (5, EOS)
    assert encode(tokenizer, "", "good", False).ids == (5,)


def test_encode_cuts_the_beginning_and_says_how_much(gpt2_folder: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder())
    cut = encode(tokenizer, "the film was", " good", True, 3)
    assert (cut.ids, cut.cut) == ((13, 5, EOS), 2)
    assert encode(tokenizer, "the film was", " good", True, 5).cut == 0


def test_encode_refuses_a_row_without_tokens(gpt2_folder: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder())
    assert encode(tokenizer, "", "", True).ids == (EOS,)
    with pytest.raises(RewardError, match="both empty"):
        encode(tokenizer, "", "", False)


def test_reward_model_counts_truncated_rows(gpt2_folder: Callable[..., Path]) -> None:
    folder = gpt2_folder()
    reward = RewardModel.from_folder(folder)
    assert reward.max_tokens == 32
    long = "a " * 40 + "the film"
    got = reward([long, "the"], [" good", " good"], [True, True])
    assert reward.truncated == 1
    last_32 = reward(["a " * 28 + "the film"], [" good"], [True])
    assert got[0] == pytest.approx(last_32[0], abs=1e-5)
    assert reward.truncated == 1


def test_scores_carry_gradients_to_head_and_body(gpt2_folder: Callable[..., Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(gpt2_folder()).train()
    scores(model, [(5, 6), (7,)], 0).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (model.score.weight, model.transformer.ln_f.bias))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # inside peft 0.21
def test_scores_are_those_of_the_adapted_model_under_peft(gpt2_folder: Callable[..., Path]) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(gpt2_folder()).eval()
    rows = [(5, 6, 7), (8,)]
    with torch.no_grad():
        before = scores(model, rows, 0)
        config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        adapted = get_peft_model(model, config).eval()
        assert torch.allclose(scores(adapted, rows, 0), before, rtol=0, atol=1e-5)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(0.5)
        got = scores(adapted, rows, 0)
        for row, score in zip(rows, got, strict=True):
            want = adapted(input_ids=torch.tensor([row])).logits[0, 0]
            assert score.item() == pytest.approx(want.item(), abs=1e-5)
    assert not torch.allclose(got, before, atol=1e-2)


def test_reward_model_refuses_several_outputs(gpt2_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"2 outputs \('LABEL_0', 'LABEL_1'\).*type classifier and name the label"):
        RewardModel.from_folder(gpt2_folder(num_labels=2))


@pytest.mark.parametrize(("pad", "problem"), [(None, "has no pad_token_id"), (EOS, "are both 4")])
def test_reward_model_refuses_a_pad_that_hides_the_end(
    gpt2_folder: Callable[..., Path], pad: int | None, problem: str
) -> None:
    folder = gpt2_folder()
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = pad
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=problem):
        RewardModel.from_folder(folder)
