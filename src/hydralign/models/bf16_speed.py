"""How fast this machine multiplies bf16 matrices, and which precision `auto` stands for: only a measurement tells.

Flags of a CPU do not: without units for bf16 its products can be a hundred times slower than fp32 ones, and some CPUs
with such units still multiply fp32 faster.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

from hydralign.errors import ConfigError

Precision = Literal["fp32", "bf16"]

CLEARLY_FASTER = 1.2
"""`auto` takes bf16 from this speed on, in units of fp32's: rounding is not worth a difference that is in the noise."""

_FIRST = (32, 256, 256)
_WHOLE = (128, 768, 768)
_HOPELESS = 0.25


@cache
def bf16_speed(kind: str) -> float:
    """Speed of bf16 matrix products in units of fp32's, on a device of this kind (cpu, cuda); measured once.

    Takes milliseconds, also where bf16 is slow: such a machine shows it on a small product. A GPU is asked instead:
    infinity where it has bf16 units, 0 where it has none.
    """
    if kind == "cuda":
        return float("inf") if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    if kind != "cpu":
        return 0.0
    with torch.no_grad():
        speed = _measured(*_FIRST, times=2)
        return speed if speed < _HOPELESS else _measured(*_WHOLE, times=5)


def _measured(rows: int, inner: int, columns: int, *, times: int) -> float:
    """fp32's shortest time for a product, divided by bf16's."""
    shortest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    pairs = {
        dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)) for dtype in shortest
    }
    torch.matmul(*pairs[torch.float32])
    for _ in range(times):
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            torch.matmul(left, right)
            shortest[dtype] = min(shortest[dtype], time.perf_counter() - start)
    return shortest[torch.float32] / shortest[torch.bfloat16]


def faster_precision(speed: float) -> Precision:
    """What `auto` stands for where bf16 products run at this speed."""
    return "bf16" if speed >= CLEARLY_FASTER else "fp32"


def concrete_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16 as given, or what `auto` stands for on the device. Raises ConfigError for anything else."""
    if precision == "auto":
        return faster_precision(bf16_speed(device.type))
    if precision not in ("fp32", "bf16"):
        raise ConfigError(
            f"precision={precision!r} is none that models are computed in here: results would be those of another. "
            "Give auto, fp32 or bf16."
        )
    return precision


def describe_speed(speed: float) -> str:
    """The measurement as a clause."""
    if speed == float("inf"):
        return "this GPU has bf16 units"
    if speed == 0.0:
        return "this device has no bf16 units"
    slower = f" ({1 / speed:,.0f} times slower)" if speed < 0.5 else ""
    return f"bf16 products run at {speed:.2g} times the speed of fp32 ones here{slower}"
