"""Two processes are one: shares, sums, and a whole PPO run under torchrun against the same run alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hydralign import distributed
from hydralign.cli import main
from hydralign.distributed import Distributed, launched_count, launched_processes
from hydralign.errors import ConfigError
from hydralign.models.folders.from_scratch import train_tokenizer
from hydralign.testing import TEXT, tiny_model
from tests.models.encoder_decoders import new_encoder_decoder


def test_shares_cover_all_rows_once() -> None:
    parts = [Distributed(rank=rank, count=3).share(10) for rank in range(3)]
    assert [row for part in parts for row in range(10)[part]] == list(range(10))


def test_uneven_shares_are_refused_where_processes_would_wait() -> None:
    with pytest.raises(ConfigError, match="not a multiple of 3 processes"):
        Distributed(count=3).require_shares(10, "rows")


def test_alone_nothing_is_sent() -> None:
    alone = Distributed()
    x = torch.ones(2)
    assert alone.sum(x) is x
    assert alone.gather(x, 2) is x


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "", "environment variable WORLD_SIZE='': launchers set it to a whole number from 1"),
        ("WORLD_SIZE", "two", "environment variable WORLD_SIZE='two': "),
        ("WORLD_SIZE", "0", "environment variable WORLD_SIZE='0': "),
        ("WORLD_SIZE", "9" * 5000, "environment variable WORLD_SIZE='999"),
        ("RANK", None, "environment variable RANK is not set with WORLD_SIZE=2: "),
        ("RANK", "", "environment variable RANK='' with WORLD_SIZE=2: "),
        (
            "RANK",
            "2",
            "environment variable RANK='2' with WORLD_SIZE=2: launchers set it to a whole number from 0 to 1",
        ),
        ("RANK", "-1", "environment variable RANK='-1' with WORLD_SIZE=2: "),
        ("LOCAL_RANK", "x", "environment variable LOCAL_RANK='x' with WORLD_SIZE=2: "),
        ("MASTER_PORT", "70000", "environment variable MASTER_PORT='70000' with WORLD_SIZE=2: "),
        ("MASTER_ADDR", None, "environment variable MASTER_ADDR is not set with WORLD_SIZE=2: "),
        ("MASTER_ADDR", " ", "environment variable MASTER_ADDR=' ' with WORLD_SIZE=2: "),
    ],
)
def test_launcher_variable_that_reaches_nobody_is_named(name: str, value: str | None, said: str) -> None:
    environment = {**LAUNCHED, name: value}
    with pytest.raises(ConfigError) as caught:
        launched_count({name: text for name, text in environment.items() if text is not None})
    assert str(caught.value).startswith(said)
    assert "torchrun" in str(caught.value)
    assert "unset WORLD_SIZE" in str(caught.value)


def test_launcher_variables_that_fit_and_none_at_all_are_fine() -> None:
    assert launched_count(LAUNCHED) == 2
    assert launched_count({"WORLD_SIZE": "1", "RANK": "7"}) == launched_count({"RANK": ""}) == 1


def test_process_that_waits_says_for_whom_and_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()

    announce = distributed._announce

    def announce_and_tell(text: str) -> None:
        announce(text)
        said.set()

    def wait_for_nobody(**_: object) -> None:
        assert said.wait(60)
        raise RuntimeError("the client socket has timed out\nsecond line")

    monkeypatch.setattr("accelerate.PartialState", wait_for_nobody)
    monkeypatch.setattr(distributed, "_announce", announce_and_tell)
    monkeypatch.setattr(distributed, "SECONDS_BEFORE_ANNOUNCING", 0.0)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"the 2 processes could not meet at here:29500 \(RuntimeError: the client"):
        launched_processes()
    assert capsys.readouterr().err.startswith("Process 2 of 2 is waiting for process 1 of 2 at here:29500. ")


def write_recipe(folder: Path, tokenizer: Any, form: dict[str, Any], *, family: str = "gpt2") -> Path:
    """A small recipe: five steps, adaptive KL, running scale, sequence lengths of all kinds."""
    if family == "gpt2":
        model = tiny_model(tokenizer)
    else:
        tokenizer = train_tokenizer([TEXT] * 3, vocabulary=300, family=family)
        model = new_encoder_decoder(family)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = ["that and this thing of words"[:n] for n in range(1, 27)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (folder / "rewards.py").write_text("def count(completions):\n    return [float(len(t) % 5) for t in completions]\n")
    recipe = {
        "output": str(folder / "out"),
        "model": {"path": str(folder / "model"), "form": form, "precision": "fp32"},
        "data": {"prompts": {"source": str(folder / "prompts.jsonl"), "held_out": {"by": "hash", "percent": 30}}},
        "ppo": {
            "steps": 5,
            "rewards": [{"type": "function", "function": f"{folder / 'rewards.py'}:count"}],
            "sampling": {"max_new_tokens": 6, "lengths": {"low": 2, "high": 6}, "temperature": 0.9},
            "batch": {"rows": 8, "samples_per_prompt": 2, "epochs": 2, "minibatches": 2, "micro_batch_size": 3},
            "optimizer": {"type": "sgd", "learning_rate": 0.05},
            "shaping": {"scale": "running", "missing_eos_penalty": 0.5},
            "kl": {"controller": {"type": "adaptive", "target": 0.05, "horizon": 20}},
            "loss": {"target_kl": 0.5},
            "saving": {"samples_every": 1, "samples": 2},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def numbers(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "ppo/metrics.jsonl").read_text().splitlines()]
    # How much fills a batch, and whether a rounding gap is 0, hang on which rows share it.
    shared = {"trunk_pad_share", "start/ref_gap_is_zero"}
    told = [{n: value for n, value in row.items() if n not in shared} for row in rows]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in told]


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("gpt2", {"type": "full"}),
        ("gpt2", {"type": "lora", "rank": 4, "unfrozen_layers": 1}),
        ("t5", {"type": "lora", "rank": 4}),
        ("bart", {"type": "hydra", "unfrozen_layers": 1}),
    ],
    ids=["full", "lora-on-a-trunk", "t5-lora", "bart-hydra"],
)
def test_two_processes_give_the_tokens_and_losses_of_one(
    family: str, form: dict[str, Any], tmp_path: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tokenizer, form, family=family)
    assert main(["ppo", str(recipe), "--output", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    arguments = ["-m", "hydralign", "ppo", str(recipe), "--output", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len(one) == 5
    assert [row.get("trunk_passes_per_token") for row in two] == [1.0 if "unfrozen_layers" in form else None] * 5
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    samples = [
        [json.loads(row) for row in (tmp_path / run / "ppo/samples.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert [row["response"] for row in samples[0]] == [row["response"] for row in samples[1]]
    after = [json.loads((tmp_path / run / "ppo/after.json").read_text()) for run in ("one", "two")]
    for name, values in after[0]["metrics"].items():
        assert after[1]["metrics"][name] == pytest.approx(values, abs=1e-4), name
    result = [json.loads((tmp_path / run / "ppo/evaluation.json").read_text()) for run in ("one", "two")]
    assert result[0]["metrics"]["score"]["n"] == result[1]["metrics"]["score"]["n"] > 4
