"""PPO on encoder–decoders goes on after a stop as if there had been none, to the bit, in every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hydralign.config.model import Form, FullForm, HydraForm, LoraForm
from hydralign.data import PromptStream
from hydralign.methods.ppo import PPOParts, train
from hydralign.models import make_policy
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.models.policy import Policy
from hydralign.rewards.combine import RewardTerm
from hydralign.testing import TEXT, tiny_prompts
from hydralign.tracking import JsonLines, Trackers
from tests.methods.test_ppo import CONFIG, count_t, lines, weights
from tests.models.encoder_decoders import new_encoder_decoder

FORMS: dict[str, Form] = {
    "full": FullForm(),
    "lora": LoraForm(rank=4),
    "decoder-lora": LoraForm(rank=4, decoder_only=True),
    "hydra": HydraForm(unfrozen_layers=1),
}


class Stop(Exception):
    pass


def stop_in_the_fifth(step: int, _: Policy) -> None:
    if step == 5:
        raise Stop


def run(folder: Path, family: str, form: str, **more: Any) -> dict[str, torch.Tensor]:
    """The trained weights after a run that ends or stops; one that lies in the folder is gone on with."""
    folder.mkdir(exist_ok=True)
    words = train_tokenizer([TEXT] * 3, vocabulary=300, family="t5")
    policy = make_policy(new_encoder_decoder(family), words, form=FORMS[form])
    stream = PromptStream(
        tuple(tiny_prompts(words, *("that and this thing of words"[:n] for n in range(1, 12)))), seed=3
    )
    record = JsonLines(folder)
    try:
        train(CONFIG, PPOParts(policy, stream, (RewardTerm("t", count_t),), folder, Trackers(record), **more), seed=5)
    finally:
        record.close()
    return weights(policy)


@pytest.mark.parametrize(
    ("family", "form"),
    [("t5", "full"), ("flan-t5", "lora"), ("t5", "hydra"), ("bart", "decoder-lora"), ("bart", "hydra")],
)
def test_stopped_and_resumed_equals_uninterrupted_to_the_bit(family: str, form: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", family, form)
    with pytest.raises(Stop):
        run(tmp_path / "parts", family, form, on_step=stop_in_the_fifth)
    assert len(lines(tmp_path / "parts")) == 5
    for name, weight in run(tmp_path / "parts", family, form).items():
        assert torch.equal(weight, whole[name]), name
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert (tmp_path / "parts/samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()
