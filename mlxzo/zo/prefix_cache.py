"""Hidden states at the first trainable layer, in memory or on disk: frozen layers always give an example the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

Tokens = tuple[int, ...]


class PrefixCache:
    """Hidden states of token sequences padded to a length, in memory: the same sequence is kept once.

    The padding is not kept. Padded positions come back as zeros, which no scored position can see (causal mask).
    """

    def __init__(self) -> None:
        self._states: dict[tuple[Tokens, int], mx.array] = {}

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states.values())

    def put(self, rows: Sequence[Tokens], hidden: mx.array) -> None:
        """Keeps hidden [R, T, D] of `rows`, padded to T tokens."""
        # A slice would keep the whole batch alive: copies do not.
        states = [mx.contiguous(hidden[i, : len(tokens)]) for i, tokens in enumerate(rows)]
        mx.eval(states)
        self._states.update(zip(((tokens, hidden.shape[1]) for tokens in rows), states, strict=True))

    def get(self, rows: Sequence[Tokens], length: int) -> mx.array | None:
        """Hidden [R, length, D] of rows that were put padded to `length`; None if one of them was not."""
        keys = [(tokens, length) for tokens in rows]
        if not all(key in self._states for key in keys):
            return None
        return mx.stack([mx.pad(self._states[key], ((0, length - len(key[0])), (0, 0))) for key in keys])


class DiskPrefixCache:
    """The same in a file, read through a memory map, so that the system keeps in memory what there is room for.

    Args:
        folder: where the file lies. It has no name there: it is gone when the process ends, however it ends.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder, prefix="prefix-")  # noqa: SIM115 (lives as long as we do)
        self._offsets: dict[tuple[Tokens, int], int] = {}
        self._dtype: mx.Dtype = mx.float32
        self._map: np.memmap | None = None
        self._width = 0

    @property
    def nbytes(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def put(self, rows: Sequence[Tokens], hidden: mx.array) -> None:
        """Keeps hidden [R, T, D] of `rows`, padded to T tokens.

        Raises:
            OSError: the disk is full; nothing of these rows is kept.
        """
        self._dtype, self._width, self._map = hidden.dtype, hidden.shape[-1], None
        offsets, end = {}, self.nbytes
        for row, tokens in zip(np.array(hidden.view(mx.uint8)), rows, strict=True):
            offsets[tokens, hidden.shape[1]] = end
            end += self._file.write(row[: len(tokens)].tobytes())
        self._file.flush()
        self._offsets |= offsets

    def get(self, rows: Sequence[Tokens], length: int) -> mx.array | None:
        """Hidden [R, length, D] of rows that were put padded to `length`; None if one of them was not."""
        keys = [(tokens, length) for tokens in rows]
        if not all(key in self._offsets for key in keys):
            return None
        if self._map is None:
            self._map = np.memmap(self._file, np.uint8, mode="r")
        width = self._width * self._dtype.size
        values = np.zeros((len(rows), length, width), np.uint8)
        for i, (tokens, _) in enumerate(keys):
            start, size = self._offsets[tokens, length], len(tokens) * width
            values[i, : len(tokens)] = self._map[start : start + size].reshape(-1, width)
        return mx.array(values).view(self._dtype)
