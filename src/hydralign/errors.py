"""The exceptions a user can meet, in one tree.

    HydralignError                  everything below; the command line prints it and exits with 2
    ├── ConfigError                 a recipe or an argument is wrong
    │   └── UnknownKeyError         a key that no section has
    ├── DataError                   a data set is missing, unreadable or unusable
    │   └── RowError                one row of a file is wrong: names file, row and field
    ├── ModelError                  a model folder or architecture cannot be used
    │   └── TokenizerError          the tokenizer lacks something that is needed
    ├── RewardError                 a reward returned something that is not a reward
    ├── RunFolderError              the output folder belongs to something else, or is damaged
    │   └── StorageError            a file could not be written: a full disk, no permission
    ├── StartCheckError             policy, reference and sampler disagree before the first update
    ├── NonFiniteError              NaN or infinity in logits, loss, reward or gradient
    ├── GradientError               a gradient was asked for in a way that would give a part of it
    └── MemoryLimitError            one row at a time is more than memory holds

A message says what is wrong, with the value: why it matters. What to do.
Each class also inherits the builtin that a caller would have caught instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class HydralignError(Exception):
    """Base of all errors that hydralign raises for a user to read."""


class ConfigError(HydralignError, ValueError):
    """A recipe, an override or an argument has a value that cannot work."""


class UnknownKeyError(ConfigError, KeyError):
    """A key that no section knows; the message lists the nearest known ones."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class DataError(HydralignError, ValueError):
    """A data set is missing, unreadable, empty or of the wrong kind."""


class RowError(DataError):
    """One row of a data set is wrong; the message names source, row and field."""

    def __init__(self, source: str, row: int, field: str, problem: str) -> None:
        super().__init__(f"{source}, row {row}, field {field!r}: {problem}")
        self.source, self.row, self.field = source, row, field


class ModelError(HydralignError, ValueError):
    """A model cannot be loaded, made or split as asked."""


class TokenizerError(ModelError):
    """A tokenizer lacks a token or a template that the task needs."""


class RewardError(HydralignError, ValueError):
    """A reward function returned the wrong count, the wrong type or nothing at all."""


class RunFolderError(HydralignError, OSError):
    """An output folder belongs to another recipe or lacks what it should hold."""


class StorageError(RunFolderError):
    """A file could not be written."""


class StartCheckError(HydralignError, RuntimeError):
    """Policy, reference and sampler disagree before the first update."""


class NonFiniteError(HydralignError, ArithmeticError):
    """NaN or infinity appeared; `where` names the first place that it was seen at."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


class GradientError(HydralignError, RuntimeError):
    """A gradient was asked for in a way that would give only a part of it."""


class MemoryLimitError(HydralignError, MemoryError):
    """Memory ran out and no smaller batch was left to try."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class when it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_error(error: Exception) -> str:
    """An error's class and the first line of what it says; the class alone when it says nothing."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def shortened(value: object, longest: int = 60, *, show: Callable[[object], str] = repr) -> str:
    """The value as it stands in Python, or as `show` writes it (`ascii`, `str`), cut to fit into a message."""
    shown = show(value)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that proposes the nearest known names, or lists all when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known here: {', '.join(names)}." if names else "Nothing is known here."
