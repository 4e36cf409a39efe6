"""Output that goes away ends nothing: pipes and terminals that close, full disks, closed descriptors."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydralign.cli import main
from hydralign.progress import progress, say
from hydralign.streams import LastingStream, lasting, lasting_output
from hydralign.training.interruption import interruptible


class Broken(io.StringIO):
    """A stream that fails with `error` once it was written to `after` times."""

    def __init__(self, error: Exception, *, after: int = 0, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.left, self.terminal = error, after, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if self.left <= 0:
            raise self.error
        self.left -= 1
        return super().write(text)

    def flush(self) -> None:
        if self.left <= 0:
            raise self.error


GONE: dict[str, Callable[[], Exception]] = {
    "pipe": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "terminal": lambda: OSError(errno.EIO, "Input/output error"),
    "closed": lambda: ValueError("I/O operation on closed file"),
    "full log": lambda: OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("terminal", [False, True], ids=["lines", "bar"])
@pytest.mark.parametrize("error", GONE.values(), ids=GONE)
def test_progress_goes_on_when_its_stream_is_gone(
    error: Callable[[], Exception], terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Broken(error(), after=1, terminal=terminal))
    done = 0
    with progress("ppo", 3) as bar:
        for step in (1, 2, 3):
            bar.update(step, {"score": 1.0})
            say(f"step {step}")
            done = step
    assert done == 3


def test_print_of_somebody_elses_code_survives_a_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    monkeypatch.setattr(sys, "stdout", gone)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_output():
        print("a reward function speaks")
        print("and complains", file=sys.stderr)
        assert not sys.stderr.isatty()
    assert sys.stdout is gone


def test_passing_failure_loses_that_text_only() -> None:
    stream = Broken(OSError(errno.ENOSPC, "No space left on device"))
    guarded = LastingStream(stream)
    assert guarded.write("lost") == 4
    stream.left = 9
    guarded.write("written")
    assert stream.getvalue() == "written"
    assert lasting(lasting(stream)) is not stream


def test_text_that_the_stream_cannot_encode_is_written_in_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    guarded = LastingStream(stream)
    guarded.write("Prüfung ✓")
    guarded.flush()
    assert raw.getvalue() == rb"Pr\xfcfung \u2713"


def test_error_of_the_program_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        LastingStream(Broken(RuntimeError("a bug"))).write("x")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_hangup_asks_for_a_checkpoint_and_a_second_one_does_not_kill(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would stay ignored
    try:
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupted.wait(5)
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "with a checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_hangup_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_command_into_a_closed_pipe_exits_cleanly() -> None:
    """`hydralign --help | head -0`, and the same without any stdout or stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "import sys; from hydralign.cli import main; sys.exit(main(['--help']))"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_plan_and_error_survive_streams_that_are_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loops: Any = type(sys)("hydralign.runs.recipes")
    loops.plan = lambda recipe, section: "plan"
    loops.run_recipe = loops.run_section = None
    monkeypatch.setitem(sys.modules, "hydralign.runs", type(sys)("hydralign.runs"))
    monkeypatch.setitem(sys.modules, "hydralign.runs.recipes", loops)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: x\nmodel: {path: tiny}\nppo: {rewards: [{type: function, function: 'm:f'}]}\n")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert main(["run", str(recipe), "--dry-run"]) == 0
    assert main(["run", "gone.yaml"]) == 2
