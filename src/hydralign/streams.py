"""Output that cannot end a run: a terminal or pipe that goes away takes what was to be shown with it, nothing else."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_PASSING = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EAGAIN, errno.EINTR}
"""Errors after which the next write may succeed, such as a log file on a full disk."""


class LastingStream:
    """A text stream whose `write` and `flush` never raise because of where the text goes.

    When the reader is gone (a closed pipe or terminal), everything from then on goes to the null device; the process's
    own descriptor too, so that neither a library nor the interpreter's last flush fails on it. None is a null device.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = _Null() if stream is None else stream

    def write(self, text: str) -> int:
        """Write what can be written; returns the length of `text`."""
        self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be flushed."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, act: Any, *text: str) -> None:
        try:
            act(*text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            self._attempt(act, *(part.encode(encoding, "backslashreplace").decode(encoding) for part in text))
        except OSError as error:
            if error.errno not in _PASSING:
                self._give_up()
        except ValueError:  # closed
            self._give_up()
        except RuntimeError as error:
            # A signal's handler spoke in the middle of another write.
            if "reentrant" not in str(error):
                raise

    def _give_up(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            descriptor = self._stream.fileno()
            if descriptor in (1, 2):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
        self._stream = _Null()


def lasting(stream: TextIO | None) -> TextIO:
    """The stream as a LastingStream."""
    return cast(TextIO, stream if isinstance(stream, LastingStream) else LastingStream(stream))


@contextmanager
def lasting_output() -> Iterator[None]:
    """In this block, and in the interpreter's last flush after it, nothing written to stdout or stderr can fail."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (lasting(stream) for stream in before)
    guards = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for guard in guards:
            guard.flush()
        sys.stdout, sys.stderr = before


def open_missing_descriptors() -> None:
    """Put the null device where the process was started without stdin, stdout or stderr.

    Otherwise the next file that is opened would take that place, and receive what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Null(io.TextIOBase):
    """Takes text and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)
