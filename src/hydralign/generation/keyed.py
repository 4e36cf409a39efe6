"""Counter-based random numbers: one uniform per (seed, iteration, row, position).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), vectorised in numpy: a keyed
function, not a stream. So which rows share a batch, in which order, on how many processes, and whether others
finished early changes no number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

TOKENS, LENGTHS, SHUFFLE, CROPS = 0, 1, 2, 3
"""Streams: what the numbers are for."""


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32 on arrays of 32-bit words (held in uint64); returns four words of the same shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        high0, low0 = product0 >> _SHIFT, product0 & _LOW
        high1, low1 = product1 >> _SHIFT, product1 & _LOW
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def keyed_uniforms(
    *, seed: int, iteration: int, rows: npt.NDArray[np.int64], positions: int, stream: int = TOKENS
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), 53 bits each, of shape [len(rows), positions].

    `rows` are global row numbers. Number (i, t) depends on seed, iteration, rows[i], t and stream alone.
    """
    row = np.broadcast_to(rows.astype(np.uint64)[:, None], (len(rows), positions))
    position = np.broadcast_to(np.arange(positions, dtype=np.uint64)[None, :], row.shape)
    counter = (
        row & _LOW,
        position,
        np.full(row.shape, iteration & 0xFFFFFFFF, dtype=np.uint64),
        (row >> _SHIFT) ^ np.uint64(stream << 24),
    )
    a, b, _, _ = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return ((a >> np.uint64(5)) * np.uint64(1 << 26) + (b >> np.uint64(6))).astype(np.float64) / float(1 << 53)


def drawn_lengths(
    low: int, high: int, *, seed: int, iteration: int, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """A length per row, uniform on low..high, both inclusive."""
    uniform = keyed_uniforms(seed=seed, iteration=iteration, rows=rows, positions=1, stream=LENGTHS)[:, 0]
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)
