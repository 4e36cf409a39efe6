"""SFT: what the loss averages over, packing that keeps texts apart, runs that go on where they stopped."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hydralign.config.model import LoraForm
from hydralign.config.sft import SFTConfig
from hydralign.data.packing import TokenSequence
from hydralign.errors import MemoryLimitError, ModelError, NonFiniteError
from hydralign.methods import sft
from hydralign.methods.packing_check import require_apart
from hydralign.methods.sft import SFTParts, held_out_losses, language_loss, token_losses, train
from hydralign.models import make_model
from hydralign.models.forms.build import make_supervised_policy
from hydralign.models.policy import Policy
from hydralign.tracking import JsonLines, Trackers
from tests.conftest import FAMILIES, FORMS

TEXTS = [
    TokenSequence(np.array(ids, dtype=np.int32), prompt)
    for ids, prompt in [([5, 6, 7, 8, 1], 2), ([9, 10, 1], 0), ([11, 12, 13, 14, 15, 16, 1], 4), ([17, 18, 1], 1)]
]
FAMILY_FORMS = [(family, form) for family in FAMILIES for form in FORMS]


def student(tokenizer: Any, family: str = "gpt2", form: str = "full", **settings: Any) -> Policy:
    model = make_model(tokenizer, family=family, layers=2, width=32, heads=2, context=64, seed=0)
    return make_supervised_policy(model, tokenizer, form=FORMS[form], **settings)


def settings(**changes: Any) -> SFTConfig:
    given = {
        "batch": {"rows": 2, "micro_batch_size": 2},
        "optimizer": {"learning_rate": 1e-2, "warmup": 0.0},
        "saving": {"checkpoint_every": 2},
        "epochs": 4,
    }
    return SFTConfig.model_validate({**given, **changes})


def run(config: SFTConfig, learner: Policy, folder: Path, *, stop_after: int | None = None) -> None:
    """Train with a metrics file; `stop_after` breaks off when that step has been logged."""
    record = JsonLines(folder)
    trackers = Trackers(record) if stop_after is None else Stopping(record, stop_after)
    try:
        train(config, SFTParts(learner, TEXTS, TEXTS[:2], folder, trackers))
    finally:
        record.close()


class Stop(Exception):
    """Breaks a run off without a checkpoint, as a power failure would."""


class Stopping(Trackers):
    def __init__(self, record: JsonLines, last: int) -> None:
        super().__init__(record)
        self.last = last

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        if step == self.last:
            raise Stop


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_plain_transformers_over_completion_tokens(tokenizer: Any, family: str) -> None:
    learner = student(tokenizer, family)
    learner.model.requires_grad_(False)
    total, tokens = 0.0, 0
    for text in TEXTS:
        labels = torch.tensor(text.ids.astype(np.int64))[None]
        wanted = labels.clone()
        wanted[:, : text.learned_from] = -100
        loss = learner.model(input_ids=labels, labels=wanted).loss
        total, tokens = total + float(loss) * text.learned, tokens + text.learned
    ours, _ = language_loss(learner, [(text,) for text in TEXTS], tokens)
    assert float(ours) == pytest.approx(total / tokens, abs=1e-5)
    assert tokens == 3 + 2 + 3 + 2


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_cannot_see_each_other(tokenizer: Any, family: str) -> None:
    learner = student(tokenizer, family)
    apart, _ = token_losses(learner, [(text,) for text in TEXTS])
    together, row_N = token_losses(learner, [tuple(TEXTS)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert row_N.unique().tolist() == [0]
    changed = replace(TEXTS[0], ids=np.array([5, 6, 20, 21, 1], dtype=np.int32))
    other, _ = token_losses(learner, [(changed, *TEXTS[1:])])
    torch.testing.assert_close(other[3:], together[3:], atol=1e-6, rtol=0)


def test_model_that_lets_packed_texts_mix_is_refused(tokenizer: Any) -> None:
    learner = student(tokenizer)
    require_apart(learner)
    learner.branch.backbone.takes_positions = False
    with pytest.raises(ModelError, match="packing: false"):
        require_apart(learner)


def test_attention_that_leaks_is_found(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = student(tokenizer)
    body = learner.branch.backbone.body
    # Positions that count on instead of beginning anew: what a model does that ignores where a text begins.
    monkeypatch.setattr(
        learner.branch.backbone,
        "body",
        lambda position_ids=None, **inputs: body(position_ids=None, **inputs),
        raising=True,
    )
    with pytest.raises(ModelError, match="see each other"):
        require_apart(learner)


@pytest.mark.parametrize(("family", "form"), FAMILY_FORMS)
def test_rows_micro_batches_and_packing_change_no_gradient(tokenizer: Any, family: str, form: str) -> None:
    gradients = []
    for rows, micro in ([(text,) for text in TEXTS], 4), ([(text,) for text in TEXTS], 1), ([tuple(TEXTS)], 1):
        learner = student(tokenizer, family, form)
        for start in range(0, len(rows), micro):
            language_loss(learner, rows[start : start + micro], 10.0)[0].backward()
        gradients.append({name: p.grad for name, p in learner.trained().items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packing", [True, False])
def test_training_learns_the_texts_by_heart(tokenizer: Any, tmp_path: Path, packing: bool) -> None:
    learner = student(tokenizer)
    before, tokens_N = held_out_losses(learner, TEXTS, 2)
    run(settings(epochs=60, packing=packing, max_tokens=16), learner, tmp_path)
    after, _ = held_out_losses(learner, TEXTS, 3)
    assert float(before.sum() / tokens_N.sum()) > 3
    assert float(after.sum() / tokens_N.sum()) < 0.3
    assert after[0] == pytest.approx(float(token_losses(learner, [(TEXTS[0],)])[0].sum().detach()), abs=1e-5)


def test_prompts_are_not_learned(tokenizer: Any) -> None:
    learner = student(tokenizer)
    language_loss(learner, [(TEXTS[2],)], 1.0)[0].backward()
    whole = replace(TEXTS[2], learned_from=0)
    assert token_losses(learner, [(whole,)])[0].shape == (6,)
    assert token_losses(learner, [(TEXTS[2],)])[0].shape == (3,)


@pytest.mark.parametrize("form", FORMS)
def test_resumed_run_equals_an_uninterrupted_one(tokenizer: Any, tmp_path: Path, form: str) -> None:
    config = settings(batch={"rows": 1, "micro_batch_size": 1}, packing=False, epochs=2)
    with pytest.raises(Stop):
        run(config, student(tokenizer, form=form), tmp_path / "stopped", stop_after=4)
    assert len(metrics(tmp_path / "stopped")) == 5
    again, whole = student(tokenizer, form=form), student(tokenizer, form=form)
    run(config, again, tmp_path / "stopped")
    run(config, whole, tmp_path / "through")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "through")
    assert [row["step"] for row in metrics(tmp_path / "through")] == list(range(8))
    for name, parameter in whole.trained().items():
        assert torch.equal(parameter, again.trained()[name]), name


def test_poisoned_loss_is_an_event_and_no_step(tokenizer: Any, tmp_path: Path) -> None:
    learner = student(tokenizer)
    with torch.no_grad():
        learner.model.get_input_embeddings().weight[5] = math.nan
    start = {name: p.detach().clone() for name, p in learner.trained().items()}
    config = settings(batch={"rows": 4, "micro_batch_size": 2}, packing=False, stop_after_bad_steps=2)
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        run(config, learner, tmp_path)
    assert [row["event"] for row in metrics(tmp_path) if "event" in row] == ["non_finite"] * 2
    short = settings(batch={"rows": 4, "micro_batch_size": 2}, packing=False, stop_after_bad_steps=2, epochs=2)
    with pytest.raises(NonFiniteError, match="has not learned"):  # all steps are done, and none of them was good
        run(short, student(tokenizer), tmp_path)
    for name, parameter in learner.trained().items():
        torch.testing.assert_close(parameter, start[name], equal_nan=True, atol=0, rtol=0)


def test_run_with_poison_only_at_its_end_is_finished(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls = settings(batch={"rows": 4, "micro_batch_size": 4}, packing=False, epochs=3), iter(range(9))
    sound = sft.language_loss

    def loss(learner: Policy, rows: Any, count: float) -> Any:
        value, stats = sound(learner, rows, count)
        return (value * math.nan if next(calls) == 2 else value), stats

    monkeypatch.setattr(sft, "language_loss", loss)
    run(config, student(tokenizer), tmp_path)
    assert [row.get("event") for row in metrics(tmp_path)] == [None, None, "non_finite"]
    run(config, student(tokenizer), tmp_path)


def test_poisoned_held_out_loss_is_an_event_and_training_goes_on(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(batch={"rows": 4, "micro_batch_size": 4}, packing=False, evaluation={"every": 1})
    calls, sound = iter(range(9)), sft.held_out_losses

    def losses(*given: Any) -> Any:
        if next(calls) == 1:
            raise NonFiniteError("held-out loss", "The held-out loss is NaN.")
        return sound(*given)

    monkeypatch.setattr(sft, "held_out_losses", losses)
    run(config, student(tokenizer), tmp_path)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 2]
    assert [(row["step"], row["event"], row["where"]) for row in rows if "event" in row] == [
        (1, "non_finite", "evaluation/held-out loss")
    ]
    assert (tmp_path / "checkpoints" / "step-4").is_dir()


def test_optimizer_that_memory_does_not_hold_is_named(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    learner = student(tokenizer)
    size = sum(p.numel() * 4 for p in learner.trained().values())
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(MemoryLimitError, match=rf"optimizer's step: .* {2 * size / 2**20:,.1f} MB.*LoRA.*sgd"):
        run(settings(), learner, tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(settings(), learner, tmp_path)


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    print(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1, :5].tolist())
"""


@pytest.mark.parametrize(("family", "form"), [("gpt2", "full"), ("llama", "lora")])
def test_saved_student_loads_in_plain_transformers(tokenizer: Any, tmp_path: Path, family: str, form: str) -> None:
    base = make_model(tokenizer, family=family, layers=2, width=32, heads=2, context=64, seed=0)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config.name_or_path = str(tmp_path / "base")
    learner = make_supervised_policy(base, tokenizer, form=FORMS[form])
    run(settings(), learner, tmp_path / "run")
    learner.save(tmp_path / "model")
    with torch.no_grad():
        wanted = learner.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1, :5].tolist()
    out = subprocess.run([sys.executable, "-c", PLAIN, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.splitlines()[-1]) == pytest.approx(wanted, abs=1e-5)


def test_bf16_trains_in_fp32_and_reads_in_bf16(tokenizer: Any) -> None:
    exact, rounded = student(tokenizer), student(tokenizer, precision="bf16")
    losses = [language_loss(one, [tuple(TEXTS)], 10.0)[0].item() for one in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert {p.dtype for p in rounded.trained().values()} == {torch.float32}
    assert isinstance(FORMS["lora"], LoraForm)
