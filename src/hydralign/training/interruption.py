"""Ctrl-C, or a request to end from a scheduler, between two steps instead of inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydralign.progress import say


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM or SIGHUP (a terminal that closes) sets the event once, so that the iteration can end and be
    saved; a second one stops at once. SIGHUP stays ignored where it was, as under nohup.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    hangup: Any = getattr(signal, "SIGHUP", None)  # not on Windows
    heard = [signal.SIGINT, signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        heard.append(hangup)
    previous = {number: signal.getsignal(number) for number in heard}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(*_: Any) -> None:
        event.set()
        restore()
        if hangup in previous:
            # A closing terminal sends it from the kernel and from the shell: the second is no wish to stop at once.
            signal.signal(hangup, signal.SIG_IGN)
        say("Stopping after this iteration, with a checkpoint. Press Ctrl-C again to stop at once.")

    for number in previous:
        signal.signal(number, note)
    try:
        yield event
    finally:
        restore()
