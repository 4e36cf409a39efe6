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
    """Ctrl-C or SIGTERM sets the event once, so that the iteration can end and be saved; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(*_: Any) -> None:
        event.set()
        restore()
        say("Stopping after this iteration, with a checkpoint. Press Ctrl-C again to stop at once.")

    for number in previous:
        signal.signal(number, note)
    try:
        yield event
    finally:
        restore()
