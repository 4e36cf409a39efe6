"""Writing files so that a crash or a full disk leaves what was there before: a temporary sibling, fsync, a rename.

Whatever keeps a file from being written becomes a StorageError that names the folder and the cause.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hydralign.errors import HydralignError, StorageError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the operating system in this block become a StorageError about `path`; all others pass.

    Libraries written in Rust (safetensors, tokenizers) hand them on as text in exceptions of their own.
    """
    try:
        yield
    except HydralignError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        reason = os.strerror(number)
        if number in _FULL:
            raise StorageError(
                f"The disk that holds {path.parent} is full ({reason}): {path.name} could not be written, and what "
                "was written of it is removed. Free some space there, then give the same command again."
            ) from error
        raise StorageError(
            f"{path} cannot be written ({reason}): results would be lost. Make {path.parent} writable, or name another "
            "output."
        ) from error


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error, or of the disk's failure behind it; None when it has none."""
    if (number := _own_number(error)) is not None:
        return number
    behind = error.__cause__ or error.__context__
    while behind is not None:
        if _own_number(behind) in _FULL | {errno.EIO, errno.EROFS}:
            return _own_number(behind)
        behind = behind.__cause__ or behind.__context__
    return None


def _own_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return int(match[1])
    return errno.ENOSPC if "No space left on device" in str(error) else None


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 file whole or not at all. Raises StorageError."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                _sync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error.

    Raises StorageError when the block, or putting it into place, fails on the disk.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _set_modes_and_sync(temporary)
            _put_in_place(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _set_modes_and_sync(folder: Path) -> None:
    """fsync every file in a new folder, and give it the mode that the umask asks for: safetensors writes files that
    only the owner can read. The folder itself was made under the umask.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("r+b") as file:
                _sync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename over what is there, which is deleted only afterwards."""
    old = folder.with_name(f".{folder.name}.old")
    delete(old)
    if folder.exists() or folder.is_symlink():
        folder.rename(old)
    temporary.rename(folder)
    delete(old)


def delete(path: Path) -> None:
    """Delete a file or folder if it is there. A folder loses its name first, so that no half of one is ever taken for
    a whole. What cannot be deleted stays under a hidden name.
    """
    if path.is_dir() and not path.is_symlink():
        doomed = path if path.name.startswith(".") else path.with_name(f".{path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        with suppress(OSError):
            path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def append(file: BinaryIO, data: bytes, path: Path) -> None:
    """Append to an unbuffered file, all of `data` or nothing. Raises StorageError."""
    with writing(path):
        start = os.fstat(file.fileno()).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), start)
            raise


def _sync(descriptor: int) -> None:
    """fsync, where the file system knows it. A full disk may show itself only here."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
