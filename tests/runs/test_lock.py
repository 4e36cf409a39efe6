"""One process at a time in an output folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from hydralign.errors import RunFolderError, StorageError
from hydralign.runs import lock
from hydralign.runs.lock import LOCK, locked

fcntl = pytest.importorskip("fcntl")


def hold(output: Path, text: str) -> int:
    """Lock the folder as another process would: through an open file of its own."""
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, text.encode())
    return descriptor


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps({"pid": 77, "host": "there", "started": "2026-01-02T03:04:05+00:00"}), "process 77 on there"),
        ("", "another process"),
        ("[1, 2]", "another process"),
    ],
)
def test_folder_of_another_process_is_refused_with_its_name(text: str, told: str, tmp_path: Path) -> None:
    descriptor = hold(tmp_path / "out", text)
    with pytest.raises(RunFolderError, match=f"is in use by {told}"), locked(tmp_path / "out"):
        pytest.fail("two processes in one folder")
    os.close(descriptor)  # as when the other one is killed: its file stays
    with locked(tmp_path / "out"):
        about = json.loads((tmp_path / "out" / LOCK).read_text())
        assert (about["pid"], about["host"]) == (os.getpid(), socket.gethostname())
    assert not (tmp_path / "out" / LOCK).exists()


def test_other_spelling_of_the_folder_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("out")
    descriptor = hold(tmp_path / "out", "")
    for spelling in ("out", "./out", str(tmp_path / "out"), "link"):
        with pytest.raises(RunFolderError, match="in use"), locked(Path(spelling)):
            pass
    os.close(descriptor)


def test_holder_may_lock_again_and_another_thread_may_not(tmp_path: Path) -> None:
    met: list[BaseException] = []

    def enter() -> None:
        try:
            with locked(tmp_path):
                pass
        except RunFolderError as error:
            met.append(error)

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in str(met[0])
    enter()
    assert len(met) == 1


def test_lock_ends_with_an_error_and_an_empty_new_folder_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "result").write_text("kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "result"]


@pytest.mark.parametrize("where", ["_open", "_lock"])
def test_file_system_without_locks_is_said_and_used(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EROFS if where == "_open" else errno.ENOLCK, "not here")

    monkeypatch.setattr(lock, where, fail)
    with locked(tmp_path):
        pass
    assert capsys.readouterr().err.count("cannot be locked (not here)") == 1


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file"), locked(tmp_path / "file"):
        pass
    with pytest.raises(StorageError, match="cannot be written"), locked(tmp_path / "file" / "below"):
        pass


def test_folder_that_another_start_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lock._open
    removed: list[Path] = []

    def open_late(path: Path) -> int:
        if len(removed) < 2:
            path.parent.rmdir()
            removed.append(path.parent)
        return plain(path)

    monkeypatch.setattr(lock, "_open", open_late)
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
