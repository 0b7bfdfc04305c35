"""Hidden states at the first trainable layer, in memory or on disk: frozen layers always give an example the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np


class ActivationCache:
    """Hidden states of sequences, in memory, under whatever decides their bits."""

    def __init__(self) -> None:
        self._states: dict[Hashable, mx.array] = {}

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states.values())

    def put(self, keys: Sequence[Hashable], states: Sequence[mx.array]) -> None:
        """Keeps hidden states [positions, D] under each key."""
        # A slice would keep the whole batch alive: copies do not.
        copies = [mx.contiguous(state) for state in states]
        mx.eval(copies)
        self._states.update(zip(keys, copies, strict=True))

    def get(self, keys: Sequence[Hashable]) -> list[mx.array] | None:
        """What was put under each key; None if something was not."""
        found = [self._states.get(key) for key in keys]
        return None if any(state is None for state in found) else found


class DiskActivationCache:
    """The same in a file, read through a memory map, so that the system keeps in memory what there is room for.

    Args:
        folder: where the file lies. It has no name there: it is gone when the process ends, however it ends.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder, prefix="prefix-")  # noqa: SIM115 (lives as long as we do)
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._dtype: mx.Dtype = mx.float32
        self._map: np.memmap | None = None
        self._width = 0

    @property
    def nbytes(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def put(self, keys: Sequence[Hashable], states: Sequence[mx.array]) -> None:
        """Keeps hidden states [positions, D] under each key.

        Raises:
            OSError: the disk is full; nothing of these is kept.
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
        """What was put under each key; None if something was not."""
        places = [self._places.get(key) for key in keys]
        if any(place is None for place in places):
            return None
        if self._map is None:
            self._map = np.memmap(self._file, np.uint8, mode="r")
        width = self._width
        pieces = (self._map[start : start + length * width].reshape(length, width) for start, length in places)
        return [mx.array(np.array(piece)).view(self._dtype) for piece in pieces]
