"""A key-value cache with room for the whole answer from the start, so that a new token copies no old ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hydralign.models.versions import DynamicCache, DynamicLayer


class RoomyCache(DynamicCache):
    """A cache for `columns` positions of each of `layers` layers.

    Sliding-window layers keep every position too; the model's own mask hides what lies outside their window.
    """

    def __init__(self, layers: int, columns: int) -> None:
        super().__init__()
        self.layers: list[Any] = [_RoomyLayer(columns) for _ in range(layers)]


class _RoomyLayer(DynamicLayer):
    """`keys` and `values` are the filled part of two larger tensors."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self._room: tuple[Tensor, ...] = ()
        self._filled = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the old; returns all of them, each [B, heads, columns so far, D of a head]."""
        if not self._room:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            rows, heads = key_states.shape[:2]
            self._room = tuple(x.new_empty(rows, heads, self.columns, x.shape[3]) for x in (key_states, value_states))
        end = self._filled + key_states.shape[2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, self._filled : end] = new
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only. They move up within the same memory, so they must be in rising order."""
        if not self._room:
            return
        for room in self._room:
            room[: len(indices), :, : self._filled] = room[indices, :, : self._filled]
        self._room = tuple(room[: len(indices)] for room in self._room)
        self._show(self._filled)

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        self._filled = end
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values
