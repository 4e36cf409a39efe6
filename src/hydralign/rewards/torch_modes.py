"""Keeps what a reward does to torch's global modes to the reward itself.

Scorer files often switch gradients off or the default type to float64, at import or when called. Left so, training
would fail far from the cause. What an import leaves is there again whenever the reward is called, and only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class _Modes:
    grad: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def now(cls) -> _Modes:
        return cls(torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())

    def set(self) -> None:
        torch.set_grad_enabled(self.grad)
        if torch.get_default_dtype() != self.dtype:
            torch.set_default_dtype(self.dtype)
        if torch.get_default_device() != self.device:
            # None takes the mode away that makes every new tensor slower.
            torch.set_default_device(None if self.device.type == "cpu" else self.device)


_LEFT_BY_IMPORT: dict[str, _Modes] = {}
"""The modes after the import of a module, where they differ from those before."""


@contextmanager
def modes_kept_importing(module: str) -> Iterator[None]:
    """Gradient mode, default dtype and default device are as before after this block, which imports `module`."""
    before = _Modes.now()
    try:
        yield
        if (left := _Modes.now()) != before:
            _LEFT_BY_IMPORT[module] = left
    finally:
        before.set()


@contextmanager
def modes_kept_calling(function: Any) -> Iterator[None]:
    """The modes that the import of `function` left in this block, and those of before after it."""
    before = _Modes.now()
    module = getattr(function, "__module__", None) or type(function).__module__
    if (left := _LEFT_BY_IMPORT.get(module)) is not None:
        left.set()
    try:
        yield
    finally:
        before.set()
