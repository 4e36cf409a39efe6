"""Damaged checkpoints are passed over for the newest whole one; a full disk leaves the old one standing."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from hydralign.errors import RunFolderError, StorageError
from hydralign.methods.ppo_state import PPOState, read_ppo_state
from hydralign.tracking import JsonLines
from hydralign.training import checkpoints as state
from hydralign.training.checkpoints import checkpoints, naming_newest_checkpoint, resume, whole_number, write_checkpoint


def save_checkpoint(folder: Path, step: int, trained: Any, optimizer: Any, *, metrics_position: int, keep: int) -> None:
    about = {**asdict(PPOState()), "step": step, "bad_steps": 0, "metrics_position": metrics_position}
    write_checkpoint(folder, step, about, trained, optimizer, keep=keep)


def read_state(about: Mapping[str, Any]) -> tuple[int, int, int, PPOState]:
    step, bad_steps, position = (whole_number(about[name]) for name in ("step", "bad_steps", "metrics_position"))
    return step, bad_steps, position, read_ppo_state(about)


def written(folder: Path, steps: tuple[int, ...] = (2, 4), *, keep: int = 9) -> tuple[Any, Any]:
    """Checkpoints whose weights are full of their step, and a fresh model and optimizer."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=0.0, weight_decay=0.0)
    for step in steps:
        weight.grad = torch.ones(3)
        optimizer.step()
        with torch.no_grad():
            weight.fill_(step)
        save_checkpoint(folder, step, {"w": weight}, optimizer, metrics_position=step * 10, keep=keep)
    fresh = torch.nn.Parameter(torch.zeros(3))
    return {"w": fresh}, torch.optim.AdamW([fresh], lr=0.0)


def cut(name: str, size: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:size])

    return change


def stating(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        stored = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(stored | values))

    return change


def replaced(content: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "state.json").write_bytes(content)

    return change


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights cut": cut("trained.safetensors", 70),
    "weights empty": cut("trained.safetensors", 0),
    "optimizer cut": cut("optimizer.safetensors", 40),
    "optimizer gone": lambda path: (path / "optimizer.safetensors").unlink(),
    "state cut": cut("state.json", 50),
    "state is zeros": replaced(b"\0" * 99),
    "state is a list": replaced(b"[1]"),
    "state gone": lambda path: (path / "state.json").unlink(),
    "step is text": stating(step="4"),
    "step of another": stating(step=3),
    "moments are null": stating(moments=None),
    "position is true": stating(metrics_position=True),
    "coefficient is NaN": stating(kl_coefficient=float("nan")),
    "environment is text": stating(environment="cpu"),
    "empty folder": emptied,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_said_and_the_one_before_it_taken(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, optimizer = written(tmp_path)
    damage(tmp_path / "step-4")
    resumed = resume(tmp_path, trained, optimizer, read_state)
    assert resumed is not None
    assert (resumed[0], resumed[2], trained["w"].tolist()) == (2, 20, [2.0, 2.0, 2.0])
    assert optimizer.state[trained["w"]]["step"] == 1
    shown = capsys.readouterr().err
    assert "step-4 is damaged" in shown
    assert "Resuming from step-2." in shown
    # It is out of the way of the checkpoints to come, which would be deleted as older ones.
    save_checkpoint(tmp_path, 3, trained, optimizer, metrics_position=0, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-4", "step-3"]


def test_run_without_any_whole_checkpoint_is_told_what_to_do(tmp_path: Path) -> None:
    trained, optimizer = written(tmp_path)
    for step in (2, 4):
        cut("state.json", 9)(tmp_path / f"step-{step}")
    with pytest.raises(RunFolderError, match="No checkpoint in .* can be read(.|\n)*step-4: state.json(.|\n)*delete"):
        resume(tmp_path, trained, optimizer, read_state)
    assert trained["w"].tolist() == [0.0, 0.0, 0.0]
    assert resume(tmp_path / "none", trained, optimizer, read_state) is None


def test_half_deleted_checkpoint_does_not_count_and_goes_with_the_next(tmp_path: Path) -> None:
    trained, optimizer = written(tmp_path, (2, 4, 6))
    (tmp_path / "step-2" / "trained.safetensors").unlink()
    (tmp_path / ".step-1.deleted").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-4", "step-6"]
    save_checkpoint(tmp_path, 8, trained, optimizer, metrics_position=0, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6", "step-8"]


FULL: dict[str, Exception] = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_full_disk_names_the_folder_and_the_checkpoint_that_stands(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, optimizer = written(tmp_path)

    def fail(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(state, "save_file", fail)
    with pytest.raises(StorageError) as met, naming_newest_checkpoint(tmp_path):
        save_checkpoint(tmp_path, 6, trained, optimizer, metrics_position=0, keep=1)
    for words in (f"The disk that holds {tmp_path} is full", "step-6", f"newest checkpoint is {tmp_path / 'step-4'}"):
        assert words in str(met.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4"]


def test_metrics_line_that_the_disk_has_no_room_for_leaves_no_half(tmp_path: Path) -> None:
    class Full:
        """A file that takes five bytes and then no more."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 5

        def fileno(self) -> int:
            return int(self.file.fileno())

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room = 0
            return int(self.file.write(bytes(data)[:5]))

        def close(self) -> None:
            self.file.close()

    record = JsonLines(tmp_path)
    record.log(0, {"loss": 1.0})
    whole = record.metrics_path.read_bytes()
    record._metrics = Full(record._metrics)  # type: ignore[assignment]
    with pytest.raises(StorageError, match=r"metrics\.jsonl could not be written"):
        record.log(1, {"loss": 0.5})
    assert record.metrics_path.read_bytes() == whole
    record.close()


@pytest.mark.parametrize("junk", [b"\0\0\0\n", b"[1]\n", b'{"step": "2"}\n'])
def test_junk_in_the_local_files_is_dropped_or_named(junk: bytes, tmp_path: Path) -> None:
    record = JsonLines(tmp_path)
    record.log(0, {"loss": 1.0})
    record.table(0, "samples", [{"query": "a"}])
    position, samples = record.position(), record.samples_path.read_bytes()
    record.samples_path.write_bytes(samples + junk)
    record.cut_back(position)
    assert record.samples_path.read_bytes() == samples
    record.table(1, "samples", [{"query": "b"}])
    assert len(record.samples_path.read_bytes().splitlines()) == 2
    record.metrics_path.write_bytes(junk * 20)
    with pytest.raises(RunFolderError, match="changed since"):
        record.cut_back(len(junk) * 20)
    record.close()
