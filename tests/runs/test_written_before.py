"""An output folder that an earlier version wrote, interrupted in the middle of PPO, is finished by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hydralign.cli import main

WRITTEN = Path(__file__).parent / "written_before"
"""A recipe with the setting names of the time, its finished sft section and a ppo section with a checkpoint of two of
three iterations; `whole_metrics.jsonl` is what the earlier version wrote when it went on.
"""


def test_run_of_an_earlier_version_is_resumed_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(WRITTEN, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    assert main(["run", "recipe.yaml"]) == 0
    said = capsys.readouterr().err
    assert said.count("micro_rows is called micro_batch_size now") == 1
    assert "sft is finished" in said
    assert "Resuming from step-2." in said
    then, now = (
        [json.loads(line) for line in Path(name).read_text().splitlines()]
        for name in ("whole_metrics.jsonl", "out/ppo/metrics.jsonl")
    )
    assert [row.keys() for row in now] == [row.keys() for row in then]
    assert now[:2] == then[:2]
    # Not the bits: another machine may round another way.
    for name in ("ppo/mean_scores", "objective/kl", "objective/kl_coef", "ppo/loss/value", "ppo/policy/grad_norm"):
        assert now[2][name] == pytest.approx(then[2][name], abs=1e-3), name
    report = json.loads(Path("out/report.json").read_text())
    assert "score" in report["metrics"]
