"""The local record is exact; mirrors really write, offline; none of them can stop a run."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hydralign.errors import ConfigError, RunFolderError
from hydralign.tracking import JsonLines, Trackers, open_trackers

ROWS = [{"query": "a|b", "response": "c\nd", "reward": 1.5}, {"query": "é", "response": "", "reward": math.nan}]


def lines(path: Path) -> list[Any]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").splitlines()]


class Flaky:
    """A mirror that records its calls and raises in the method called `fails`."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, list[str]()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("no route")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._called("log")

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._called("table")

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        self._called("event")

    def close(self) -> None:
        self._called("close")


def test_json_lines_hold_metrics_events_and_samples(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path / "ppo")
    tracker.log(1, {"kl": 0.25, "tokens": 12, "bad": math.nan, "worse": -math.inf})
    tracker.event(1, "skipped_update", {"where": "loss", "values": [math.inf, 1]})
    tracker.table(1, "samples", ROWS)
    # Read before closing: every line is flushed as it is written.
    assert lines(tmp_path / "ppo" / "metrics.jsonl") == [
        {"step": 1, "kl": 0.25, "tokens": 12, "bad": None, "worse": None},
        {"step": 1, "event": "skipped_update", "where": "loss", "values": [None, 1]},
    ]
    assert lines(tmp_path / "ppo" / "samples.jsonl") == [
        {"step": 1, "table": "samples", "query": "a|b", "response": "c\nd", "reward": 1.5},
        {"step": 1, "table": "samples", "query": "é", "response": "", "reward": None},
    ]
    tracker.close()


def test_json_lines_take_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path)
    tracker.log(1, {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": torch.tensor(math.nan), "d": Path("x")})  # type: ignore[dict-item]
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 0.5, "b": 2.0, "c": None, "d": "x"}]
    tracker.close()


def test_cut_back_restores_the_files_as_they_were_byte_for_byte(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path)
    for step in (1, 2):
        tracker.log(step, {"x": step})
        tracker.table(step, "samples", ROWS)
    offset = tracker.position()
    before = [path.read_bytes() for path in (tracker.metrics_path, tracker.samples_path)]
    tracker.event(3, "oops", {})
    tracker.table(3, "samples", ROWS)
    tracker.close()
    with tracker.samples_path.open("ab") as file:
        file.write(b'{"step": 3, "ta')  # what a killed process leaves
    again = JsonLines(tmp_path)
    again.cut_back(offset)
    assert [path.read_bytes() for path in (again.metrics_path, again.samples_path)] == before
    again.log(3, {"x": 3})
    again.table(3, "samples", ROWS[:1])
    assert [line["step"] for line in lines(again.metrics_path)] == [1, 2, 3]
    assert [line["step"] for line in lines(again.samples_path)] == [1, 1, 2, 2, 3]
    again.cut_back(0)
    assert again.metrics_path.read_bytes() == again.samples_path.read_bytes() == b""
    again.close()


def test_cut_back_refuses_an_offset_that_does_not_fit_the_file(tmp_path: Path) -> None:
    tracker = JsonLines(tmp_path)
    tracker.log(1, {"x": 1})
    for offset in (tracker.position() + 1, tracker.position() - 1):
        with pytest.raises(RunFolderError, match=f"no line that ends at byte {offset}"):
            tracker.cut_back(offset)
    tracker.close()


def test_a_mirror_that_fails_is_reported_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flaky, sound = Flaky("log"), Flaky()
    trackers = Trackers(JsonLines(tmp_path), {"flaky": flaky, "sound": sound})
    with caplog.at_level(logging.WARNING, logger="hydralign"):
        trackers.table(1, "samples", ROWS)
        trackers.log(1, {"x": 1.0})
        trackers.log(2, {"x": 2.0})
        trackers.event(2, "stop", {})
        trackers.close()
    assert flaky.calls == ["table", "log"]
    assert sound.calls == ["table", "log", "log", "event", "close"]
    assert [record.getMessage() for record in caplog.records] == [
        "tracker flaky failed (ConnectionError: no route): it gets nothing more. "
        "Training goes on; metrics.jsonl has everything."
    ]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 2]


@pytest.mark.parametrize("method", ["table", "event", "close"])
def test_no_method_of_a_mirror_can_stop_a_run(tmp_path: Path, method: str) -> None:
    trackers = Trackers(JsonLines(tmp_path), {"flaky": Flaky(method)})
    trackers.table(1, "samples", ROWS)
    trackers.event(1, "stop", {})
    trackers.close()
    assert trackers.mirrors == {}


def test_the_local_files_failure_does_stop_a_run(tmp_path: Path) -> None:
    trackers = Trackers(JsonLines(tmp_path), {})
    assert trackers.local
    trackers.local.close()
    with pytest.raises(ValueError, match="closed file"):
        trackers.log(1, {"x": 1.0})


def test_trackers_hand_position_and_cut_back_to_the_local_files(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path, (), "run", {})
    trackers.log(1, {"x": 1.0})
    offset = trackers.position()
    trackers.log(2, {"x": 2.0})
    trackers.cut_back(offset)
    trackers.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "x": 1.0}]


def test_open_trackers_refuses_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tracker 'wandbb'.*Did you mean 'wandb'"):
        open_trackers(tmp_path, ["wandbb"], "run", {})


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_open_trackers_says_how_to_install_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'hydralign\[{name}\]'"):
        open_trackers(tmp_path, [name], "run", {})


def test_open_trackers_goes_on_without_a_mirror_that_cannot_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="hydralign"):
        trackers = open_trackers(tmp_path, ["tensorboard"], "run", {})
    assert "tracker tensorboard failed" in caplog.text
    assert trackers.mirrors == {}
    trackers.close()


def test_tensorboard_mirror_writes_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    trackers = open_trackers(tmp_path, ["tensorboard"], "run", {"steps": 3})
    trackers.log(3, {"objective/kl": 2.5, "bad": math.nan})
    trackers.log(4, {"objective/kl": 2.75})
    trackers.table(4, "samples", ROWS)
    trackers.event(4, "stop", {"why": "test"})
    trackers.close()
    assert "tensorboard" in trackers.mirrors
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(3, 2.5), (4, 2.75)]
    (table,) = events.Tensors("samples/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines() == [
        "|query|response|reward|",
        "|---|---|---|",
        r"|a\|b|c d|1.5|",
        "|é||None|",
    ]
    assert b'{"why": "test"}' in events.Tensors("event/stop/text_summary")[0].tensor_proto.string_val[0]
    assert b'"steps": 3' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


SCRIPT = """
import json, sys
from pathlib import Path
from hydralign.tracking import open_trackers

folder = Path(sys.argv[1])
trackers = open_trackers(folder, ["wandb", "trackio"], "first", {"steps": 2})
for step in (1, 2):
    trackers.log(step, {"objective/kl": step / 4, "bad": float("nan")})
trackers.table(2, "samples", [{"query": "q", "response": "r", "reward": 1.5}])
trackers.event(2, "stop", {"why": "test"})
trackers.close()
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("hydralign")
logs = SQLiteStorage.get_logs("hydralign", "first")
found = {"alive": sorted(trackers.mirrors), "name": run.name, "steps": run.config["steps"], "logs": logs}
print("FOUND" + json.dumps(found, default=str))
"""


def test_wandb_and_trackio_mirrors_write_offline_under_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process of its own: trackio fixes its folder at import, and both leave threads behind.
    for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("FOUND")[1].splitlines()[0])
    assert found["alive"] == ["trackio", "wandb"], done.stderr
    assert (found["name"], found["steps"]) == ("first", 2)
    assert [row["objective/kl"] for row in found["logs"] if "objective/kl" in row] == [0.25, 0.5]
    assert '"reward": 1.5' in json.dumps(found["logs"])
    assert (tmp_path / "trackio" / "hydralign.db").exists()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"objective/kl" in record.read_bytes()
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text()) == {"columns": ["query", "response", "reward"], "data": [["q", "r", 1.5]]}
