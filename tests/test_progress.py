"""Progress lines and the bar, with a clock and a stream of our own."""

from __future__ import annotations

import io
import re

import pytest

from hydralign.progress import progress, say


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")


def run(steps: int, seconds: float, stream: io.StringIO, *, start: int = 0, total: int | None = None) -> list[str]:
    clock = Clock()
    with progress("ppo", total or steps, start=start, stream=stream, clock=clock) as shown:
        for step in range(start + 1, steps + 1):
            clock.now += seconds
            shown.update(step, {"reward": 0.31, "kl": 2.4, "length": 17, "unseen": 9})
    return stream.getvalue().splitlines()


def test_lines_show_three_numbers_and_the_time_left() -> None:
    lines = run(12, 2.5, io.StringIO(), total=100)
    assert lines[-1] == "ppo 12/100  reward 0.31  kl 2.4  length 17  eta 3:40"


def test_lines_come_every_ten_seconds_with_the_first_and_the_last() -> None:
    lines = run(12, 2.5, io.StringIO())
    assert [line.split()[1] for line in lines] == ["1/12", "5/12", "9/12", "12/12"]
    assert lines[-1].endswith("eta 0:00")


def test_lines_end_with_the_last_step_that_was_done_when_a_loop_breaks() -> None:
    stream, clock = io.StringIO(), Clock()
    with pytest.raises(KeyboardInterrupt), progress("sft", 9, stream=stream, clock=clock) as shown:  # noqa: PT012
        for step in (1, 2, 3):
            shown.update(step, {})
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines() == ["sft 1/9  eta 0:00", "sft 3/9  eta 0:00"]


def test_eta_counts_only_the_steps_of_this_run() -> None:
    # Ten seconds a step since the resume at step 90; nine steps remain after step 91.
    assert run(91, 10.0, io.StringIO(), start=90, total=100)[0].endswith("eta 1:30")
    assert run(1, 60.0, io.StringIO(), total=101)[0].endswith("eta 1:40:00")


def test_numbers_have_three_digits_and_no_exponent_below_a_million() -> None:
    stream = io.StringIO()
    with progress("x", 2, stream=stream, clock=Clock()) as shown:
        shown.update(1, {"a": 12345.6, "b": 3e-6, "c": float("nan")})
        shown.update(2, {"a": 2e7, "b": -0.31234, "c": 17.26})
    first, last = stream.getvalue().splitlines()
    assert first.startswith("x 1/2  a 12346  b 3e-06  c nan  eta")
    assert last.startswith("x 2/2  a 2e+07  b -0.312  c 17.3  eta")


def test_terminal_gets_one_bar_with_the_same_numbers() -> None:
    text = "\n".join(run(3, 2.0, Terminal()))
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    last = [line for line in plain.splitlines() if "3/3" in line][-1]
    assert last.startswith("ppo ")
    assert last.rstrip().endswith("3/3 reward 0.31  kl 2.4  length 17  eta 0:00")


def test_terminal_gets_no_colour_when_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colours.search("\n".join(run(3, 2.0, Terminal())))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search("\n".join(run(3, 2.0, Terminal())))


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert run(1, 1.0, Terminal()) == ["ppo 1/1  reward 0.31  kl 2.4  length 17  eta 0:00"]


def test_labels_with_brackets_stay_as_they_are() -> None:
    stream = Terminal()
    with progress("ppo [red]", 1, stream=stream, clock=Clock()) as shown:
        shown.update(1, {"[b]": 1.0})
    assert "ppo [red]" in stream.getvalue()
    assert "[b] 1" in stream.getvalue()


def test_progress_and_say_write_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("ppo", 1, clock=Clock()) as shown:
        shown.update(1, {})
    say("wrote [bold]model[/bold] to 'out'")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "ppo 1/1  eta 0:00\nwrote [bold]model[/bold] to 'out'\n"
