"""One process at a time in an output folder: an operating-system lock, which ends with the process that holds it.

A killed process leaves no lock behind, only a file OUT/.lock that says who it was; the next one takes it over.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from hydralign.errors import RunFolderError, StorageError
from hydralign.progress import say

LOCK = ".lock"

MOST_ATTEMPTS = 100
"""How often a folder that vanishes is made again before the file system counts as one that cannot be locked."""

_held: set[tuple[str, int]] = set()
"""(folder, thread) of this process's locks: a demonstration holds its folder while it runs section after section."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the output folder, which is made if it is not there; an empty one that was made here goes again.

    Raises RunFolderError that names the process which holds it already, StorageError when it cannot be made. Where
    the file system has no locks, that is said and the block runs all the same.
    """
    key = (os.path.realpath(output), threading.get_ident())
    if key in _held:
        yield
        return
    made = _make(output)
    try:
        descriptor = _acquire(output, made)
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            if descriptor is not None:
                _release(descriptor, output)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _make(output: Path) -> list[Path]:
    """Make the folder; returns those that were not there before, the innermost first."""
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    if output.exists() and not output.is_dir():
        raise RunFolderError(f"output={str(output)!r} is a file: results need a folder. Name another.")
    try:
        with suppress(FileNotFoundError):  # a folder above that another start removes at this moment
            output.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"output={str(output)!r} cannot be written ({error.strerror}): results would be lost. Name another folder."
        ) from error
    return missing


def _acquire(output: Path, made: list[Path]) -> int | None:
    """The descriptor of the locked file; None where nothing can be locked.

    Another start that fails at this moment may remove the folder: it is made again, and added to `made`.
    """
    path = output / LOCK
    attempts = 0
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            attempts += 1
            if error.errno == errno.ENOENT and attempts < MOST_ATTEMPTS:
                made[:] = dict.fromkeys([*_make(output), *made])
                continue
            _say_unlocked(output, error)
            return None
        try:
            _lock(descriptor)
            if not _is_at(descriptor, path):  # its holder deleted it in between
                os.close(descriptor)
                continue
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK):
                raise RunFolderError(_in_use(output)) from None
            _say_unlocked(output, error)
            return None
        _sign(descriptor)
        return descriptor


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)  # another user's; it can be locked all the same


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Far behind the text, which others may want to read.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    }
    with suppress(OSError):  # a full disk: the lock holds, only nobody can read who holds it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(about).encode())


def _in_use(output: Path) -> str:
    try:
        about = json.loads((output / LOCK).read_text(encoding="utf-8"))
        who = f"process {about['pid']} on {about['host']}, started {about['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"output={str(output)!r} is in use by {who}: two at once would write into the same files. Wait until it ends, "
        "stop it, or name another output."
    )


def _say_unlocked(output: Path, error: OSError) -> None:
    say(
        f"{output} cannot be locked ({error.strerror}): make sure that no other process writes there while this one "
        "runs."
    )


def _release(descriptor: int, output: Path) -> None:
    with suppress(OSError):
        (output / LOCK).unlink()  # before the lock ends, so that nobody's new file is deleted
    os.close(descriptor)
