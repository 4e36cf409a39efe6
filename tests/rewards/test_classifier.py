"""Classifier rewards: labels by name, three read-outs, nothing that depends on padding or company."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hydralign.config.model import ModelConfig
from hydralign.config.rewards import ClassifierRewardConfig as TermConfig
from hydralign.errors import ModelError
from hydralign.models.classifiers.labels import find_label, require_probabilities
from hydralign.models.classifiers.loading import load_classifier
from hydralign.models.folders.loading import check_folder
from hydralign.rewards import ClassifierReward
from hydralign.rewards.classifier import Activation, Output, TextPart
from hydralign.runs.model_facts import ModelSource
from hydralign.runs.reward_checks import check_terms

PROMPTS = ["the film was", "a", "the ending was very"]
COMPLETIONS = [" good", " dull film was the dull very bad ending", " bad"]
LABELS = ["negative", "neutral", "positive"]


def transformers_logits(folder: Path, text: str) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    return logits


def test_classifier_reads_the_named_label_as_transformers_does(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    got = ClassifierReward.from_folder(folder, label="positive")(PROMPTS, COMPLETIONS)
    for score, prompt, completion in zip(got, PROMPTS, COMPLETIONS, strict=True):
        assert score == pytest.approx(transformers_logits(folder, prompt + completion)[2].item(), abs=1e-5)


def test_classifier_gives_the_same_score_when_labels_are_permuted(bert_folder: Callable[..., Path]) -> None:
    first = bert_folder(LABELS)
    second = bert_folder(["positive", "negative", "neutral"], name="permuted")
    weights = load_file(second / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][[2, 0, 1]].contiguous()
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    for label in LABELS:
        a = ClassifierReward.from_folder(first, label=label)(PROMPTS, COMPLETIONS)
        b = ClassifierReward.from_folder(second, label=label)(PROMPTS, COMPLETIONS)
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("text", ["completion", "prompt+completion"])
def test_classifier_score_does_not_depend_on_company(bert_folder: Callable[..., Path], text: TextPart) -> None:
    folder = bert_folder(LABELS)
    together = ClassifierReward.from_folder(folder, label="neutral", text=text)(PROMPTS, COMPLETIONS)
    single = ClassifierReward.from_folder(folder, label="neutral", text=text, batch_size=1)
    alone = [single([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 3) for score in together}) == 3


def test_classifier_outputs_follow_their_formulas_for_exclusive_labels(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    z = transformers_logits(folder, "good").double().tolist()
    odds = ClassifierReward.from_folder(folder, label="neutral", text="completion", output="log_odds")
    share = ClassifierReward.from_folder(folder, label="neutral", text="completion", output="probability")
    total = sum(math.exp(x) for x in z)
    assert share(["x"], ["good"])[0] == pytest.approx(math.exp(z[1]) / total, abs=1e-6)
    assert odds(["x"], ["good"])[0] == pytest.approx(z[1] - math.log(math.exp(z[0]) + math.exp(z[2])), abs=1e-5)


def test_classifier_outputs_use_one_logit_for_independent_labels(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS, problem_type="multi_label_classification")
    z = transformers_logits(folder, "good")[2].item()
    odds = ClassifierReward.from_folder(folder, label="positive", text="completion", output="log_odds")
    share = ClassifierReward.from_folder(folder, label="positive", text="completion", output="probability")
    assert odds(["x"], ["good"])[0] == pytest.approx(z, abs=1e-5)
    assert share(["x"], ["good"])[0] == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "activation", "sigmoid", "warned"),
    [
        (None, None, False, True),
        (None, "sigmoid", True, False),
        (None, "softmax", False, False),
        ("single_label_classification", None, False, False),
        ("multi_label_classification", None, True, False),
        ("multi_label_classification", "softmax", False, False),
        ("single_label_classification", "sigmoid", True, False),
    ],
)
def test_classifier_takes_sigmoid_or_softmax_as_told_and_says_where_nobody_tells(
    bert_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    problem_type: str | None,
    activation: Activation | None,
    sigmoid: bool,
    warned: bool,
) -> None:
    folder = bert_folder(LABELS, problem_type=problem_type)
    z = transformers_logits(folder, "good").double()
    want = {
        "probability": (z.sigmoid() if sigmoid else z.softmax(-1))[2].item(),
        "log_odds": (z[2] if sigmoid else z[2] - z[:2].logsumexp(0)).item(),
        "logit": z[2].item(),
    }
    for output in get_args(Output):
        reward = ClassifierReward.from_folder(
            folder, label="positive", text="completion", output=output, activation=activation
        )
        assert reward(["x"], ["good"])[0] == pytest.approx(want[output], abs=1e-5)
        said = capsys.readouterr().err
        assert ("has no problem_type" in said) == (warned and output != "logit")


def test_classifier_cuts_the_prompts_beginning_and_counts_it(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS, positions=6)  # [CLS], four words, [SEP]
    reward = ClassifierReward.from_folder(folder, label="positive")
    got = reward(["a a a the film was", "the"], [" very good", " good"])
    assert got[0] == pytest.approx(transformers_logits(folder, "film was very good")[2].item(), abs=1e-5)
    assert got[1] == pytest.approx(transformers_logits(folder, "the good")[2].item(), abs=1e-5)
    assert reward.truncated == 1


def test_classifier_reads_the_end_of_a_lone_completion(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS, positions=6)
    reward = ClassifierReward.from_folder(folder, label="positive", text="completion")
    got = reward(["x"], ["bad bad film was very good"])
    assert got[0] == pytest.approx(transformers_logits(folder, "film was very good")[2].item(), abs=1e-5)
    assert reward.truncated == 1


def test_classifier_of_a_decoder_scores_an_empty_completion(gpt2_folder: Callable[..., Path]) -> None:
    folder = gpt2_folder(num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (folder / "config.json").write_text(json.dumps(config))
    reward = ClassifierReward.from_folder(folder, label="yes", text="completion")
    both = reward(["x", "x"], ["", "good film"])
    assert both[0] == pytest.approx(transformers_logits(folder, "<eos>")[1].item(), abs=1e-5)
    assert both[1] == pytest.approx(transformers_logits(folder, "good film")[1].item(), abs=1e-5)


def test_classifier_leaves_no_gradient_and_is_in_eval_mode(bert_folder: Callable[..., Path]) -> None:
    reward = ClassifierReward.from_folder(bert_folder(LABELS), label="positive")
    assert not reward.model.training
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in reward.model.parameters())
    assert reward(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)


def test_find_label_prefers_the_exact_case_and_accepts_a_single_other() -> None:
    assert find_label("hate", ["Hate", "hate"]) == 1
    assert find_label("NOTHATE", ["hate", "nothate"]) == 1
    with pytest.raises(ModelError, match="'HATE' fits 2 labels"):
        find_label("HATE", ["Hate", "hate"])


def test_find_label_lists_the_labels_when_unknown() -> None:
    with pytest.raises(ModelError, match=r"no label 'positiv': its labels are 'negative', 'positive'.*mean 'positive'"):
        find_label("positiv", ["negative", "positive"])
    with pytest.raises(ModelError, match="none is taken by position"):
        find_label("1", ["negative", "positive"])


def test_classifier_refuses_labels_that_the_config_does_not_name(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(None)
    config = json.loads((folder / "config.json").read_text())
    config.pop("id2label", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="names no labels: which output means 'LABEL_1' would be a guess"):
        ClassifierReward.from_folder(folder, label="LABEL_1")
    named = bert_folder(["LABEL_0", "LABEL_1", "LABEL_2"], name="written")
    assert ClassifierReward.from_folder(named, label="LABEL_1").label_column == 1


def reconfigure(folder: Path, file: str = "config.json", **changes: Any) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | changes))


def check_before_a_run(folder: Path, **settings: Any) -> tuple[str, ...]:
    term = TermConfig(path=str(folder), **settings)
    return check_terms([term], None, ModelSource(ModelConfig(path="."), "out", {}))


def test_labels_that_are_not_numbered_from_0_are_refused_by_the_reward_and_by_the_check_before_a_run(
    bert_folder: Callable[..., Path],
) -> None:
    folder = bert_folder(["NEG", "POS"])
    for id2label in ({"1": "NEG", "2": "POS"}, {"NEG": 0, "POS": 1}, {"0": "NEG", "00": "POS"}, ["NEG", "POS"]):
        reconfigure(folder, id2label=id2label)
        with pytest.raises(ModelError, match="id2label|has the shape|Model .* could not be loaded"):
            ClassifierReward.from_folder(folder, label="POS")
        with pytest.raises(ModelError, match=r"has (the keys .*|id2label=.*)in its config.json"):
            check_before_a_run(folder, label="POS")


def test_single_output_is_read_as_a_probability_where_it_has_one_of_its_own(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(["toxic"])
    for problem_type, activation in ((None, "sigmoid"), ("multi_label_classification", None)):
        reconfigure(folder, problem_type=problem_type)
        settings: Any = {"label": "toxic", "output": "probability", "activation": activation}
        assert 0 < ClassifierReward.from_folder(folder, **settings)(["x"], ["good"])[0] < 1
        assert check_before_a_run(folder, **settings) == ("toxic",)


def test_pad_id_or_longest_text_that_cannot_be_is_refused_with_its_value(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    for file, key, value in (
        ("config.json", "pad_token_id", -1),
        ("config.json", "pad_token_id", 99),
        ("tokenizer_config.json", "model_max_length", "abc"),
        ("tokenizer_config.json", "model_max_length", 0),
    ):
        before = (folder / file).read_text()
        reconfigure(folder, file, **{key: value})
        for load in (check_before_a_run, ClassifierReward.from_folder):
            with pytest.raises(ModelError, match=rf"{key}[ =](is )?{value!r}"):
                load(folder, label="positive")
        (folder / file).write_text(before)
    model, tokenizer, _ = load_classifier(folder, "cpu")
    config: Any = model.config
    config.pad_token_id = -1
    with pytest.raises(ModelError, match=r"pad_token_id=-1"):
        ClassifierReward(model, tokenizer, label="positive")
    for unlimited in (-1, math.inf):
        reconfigure(folder, "tokenizer_config.json", model_max_length=unlimited)
        assert ClassifierReward.from_folder(folder, label="positive").max_tokens == 32


def test_mistyped_classifier_folder_is_told_the_nearest_name(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    with pytest.raises(ModelError, match=rf"looked at {folder}s\). Did you mean '{folder}'"):
        check_folder(f"{folder}s", whole=True)
    with pytest.raises(ModelError, match="is a file"):
        check_folder(str(folder / "config.json"), whole=True)


def test_classifier_refuses_a_folder_without_weights(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors.*pytorch_model\.bin: pickled weights can run code"):
        ClassifierReward.from_folder(folder, label="positive")
    with pytest.raises(ModelError, match="does not exist"):
        ClassifierReward.from_folder(folder / "nowhere", label="positive")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        ClassifierReward.from_folder(folder, label="positive")


def test_classifier_refuses_a_model_whose_head_would_be_random(
    gpt2_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = gpt2_folder()
    GPT2LMHeadModel(GPT2Config(vocab_size=14, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks the weights score\.weight"):
        ClassifierReward.from_folder(folder, label="positive")


def test_classifier_refuses_a_file_that_is_no_safetensors(bert_folder: Callable[..., Path]) -> None:
    folder = bert_folder(LABELS)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="the file is damaged or only partly there"):
        ClassifierReward.from_folder(folder, label="positive")


def test_classifier_refuses_an_adapter_and_odds_of_one_output(gpt2_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = gpt2_folder()
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "score"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="single output 'score': log_odds needs another label"):
        ClassifierReward.from_folder(folder, label="score", output="log_odds")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a PEFT adapter"):
        ClassifierReward.from_folder(tmp_path / "adapter", label="score")


@pytest.mark.parametrize("output", ["log_odds", "probability"])
def test_probability_of_a_model_that_has_none_or_an_unknown_kind_is_refused(
    bert_folder: Callable[..., Path], output: Output
) -> None:
    folder = bert_folder(LABELS, problem_type="regression")
    with pytest.raises(ModelError, match=f"'regression': its outputs are no probabilities, so {output} would"):
        ClassifierReward.from_folder(folder, label="positive", output=output)
    assert ClassifierReward.from_folder(folder, label="positive").output == "logit"
    assert ClassifierReward.from_folder(folder, label="positive", output=output, activation="softmax").output == output
    with pytest.raises(ModelError, match=r"'multi_label' in .*is not known: .*multi_label_classification"):
        require_probabilities("multi_label", None, output)


def test_classifier_refuses_an_unknown_output(bert_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"'logits' is no way to read .* Did you mean 'logit'"):
        ClassifierReward.from_folder(bert_folder(LABELS), label="positive", output="logits")  # type: ignore[arg-type]
