"""Caches of the frozen layers' output, in memory or on disk: it is the same in every step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np


class ActivationCache:
    """Hidden states of sequences in memory, by keys that determine their bits."""

    def __init__(self) -> None:
        self._states: dict[Hashable, mx.array] = {}

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states.values())

    def put(self, keys: Sequence[Hashable], states: Sequence[mx.array]) -> None:
        """Stores hidden states [positions, D], one per key."""
        # A slice would keep the whole batch alive; a copy does not.
        copies = [mx.contiguous(state) for state in states]
        mx.eval(copies)
        self._states.update(zip(keys, copies, strict=True))

    def get(self, keys: Sequence[Hashable]) -> list[mx.array] | None:
        """The hidden states of each key; None unless all are there."""
        return [self._states[key] for key in keys] if all(key in self._states for key in keys) else None


class DiskActivationCache:
    """Hidden states in a file, read through a memory map, so that the system's page cache uses free memory for them.

    Args:
        folder: for the file, which has no name and is deleted however the process ends.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder, prefix="prefix-")  # noqa: SIM115 (lives as long as the cache)
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._dtype: mx.Dtype = mx.float32
        self._map: np.memmap | None = None
        self._width = 0

    @property
    def nbytes(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def put(self, keys: Sequence[Hashable], states: Sequence[mx.array]) -> None:
        """Stores hidden states [positions, D], one per key.

        Raises:
            OSError: the disk is full; none of these are stored.
        """
        self._dtype, self._map = states[0].dtype, None
        self._width = states[0].shape[-1] * self._dtype.size
        places, end = {}, self.nbytes
        for key, state in zip(keys, states, strict=True):
            places[key] = end, len(state)
            end += self._file.write(np.array(mx.contiguous(state).view(mx.uint8)).tobytes())
        self._file.flush()
        self._places |= places

    def get(self, keys: Sequence[Hashable]) -> list[mx.array] | None:
        """The hidden states of each key; None unless all are there."""
        if not all(key in self._places for key in keys):
            return None
        if self._map is None:
            self._map = np.memmap(self._file, np.uint8, mode="r")
        width, places = self._width, (self._places[key] for key in keys)
        pieces = (self._map[start : start + length * width].reshape(length, width) for start, length in places)
        return [mx.array(np.array(piece)).view(self._dtype) for piece in pieces]
