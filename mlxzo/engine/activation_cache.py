"""Caches of the frozen layers' output, in memory or on disk: it is the same in every step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Hashable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.files import need_free_space
from ..core.formatting import format_bytes
from ..core.meter import system_memory

if TYPE_CHECKING:
    from .session import Session

# `activation_cache: auto` takes at most this share of the memory that programs could have now, or of the free disk.
_CACHE_SHARE = 0.1


class ActivationCache:
    """Hidden states of sequences in memory, by keys that determine their bits.

    The states that are stored at a time are one array, since Metal bounds the number of arrays in memory.
    """

    def __init__(self) -> None:
        self._arrays: list[mx.array] = []
        # The array of each key, and the range of its rows.
        self._places: dict[Hashable, tuple[int, int, int]] = {}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def put(self, keys: Sequence[Hashable], states: Sequence[mx.array]) -> None:
        """Stores hidden states [positions, D], one per key; those of a key that is stored already stay."""
        if not (new := _unstored(keys, states, self._places)):
            return
        # A slice would keep the whole batch alive; a copy does not.
        array = mx.contiguous(mx.concatenate(list(new.values())))
        mx.eval(array)
        ends = accumulate(map(len, new.values()), initial=0)
        self._places |= {key: (len(self._arrays), *span) for key, span in zip(new, pairwise(ends), strict=True)}
        self._arrays.append(array)

    def get(self, keys: Sequence[Hashable]) -> list[mx.array] | None:
        """The hidden states of each key; None unless all are there."""
        if not all(key in self._places for key in keys):
            return None
        places = (self._places[key] for key in keys)
        return [self._arrays[number][first:end] for number, first, end in places]


def _unstored(
    keys: Sequence[Hashable], states: Sequence[mx.array], stored: Container[Hashable]
) -> dict[Hashable, mx.array]:
    """The states whose keys are not stored yet, each once."""
    return {key: state for key, state in zip(keys, states, strict=True) if key not in stored}


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
        """Stores hidden states [positions, D], one per key; those of a key that is stored already stay.

        Raises:
            OSError: the disk is full; none of these are stored.
        """
        if not (new := _unstored(keys, states, self._places)):
            return
        self._dtype, self._map = states[0].dtype, None
        self._width = states[0].shape[-1] * self._dtype.size
        places, end = {}, self.nbytes
        for key, state in new.items():
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


def open_activation_cache(session: Session, folder: Path, emit: events.Emit) -> None:
    """Makes an activation cache for the frozen layers, where the configuration asks for one or one fits and pays.

    Args:
        folder: the folder of a cache on disk.

    Raises:
        DoesNotFit: a cache on disk was asked for, and the disk is full.
    """
    scorer = session.scorer
    rows = {
        (row, session.shapes.padded(example))
        for split in session.splits.values()
        for example in split
        for row in example.rows
    }
    size = 4 * session.causal.wiring.width(scorer.layers) * sum(scorer.frozen.kept_positions(row) for row, _ in rows)
    kind = _activation_cache_kind(session, folder, size)
    if kind == "off":
        return
    if kind == "disk":
        need_free_space(folder, size, "the frozen layers' output")
    scorer.cache = DiskActivationCache(folder) if kind == "disk" else ActivationCache()
    where = "on disk" if kind == "disk" else "in memory"
    emit(
        events.Note(
            f"the output of the {scorer.layers} frozen layers is computed once per example and kept {where}, up to "
            f"{format_bytes(size)}: the first pass over the data is slower than the later ones"
        )
    )


def _activation_cache_kind(session: Session, folder: Path, size: int) -> str:
    """The place of a cache of `size` bytes: `ram`, `disk` or `off`."""
    config = session.config
    # Steps that write answers do not read it.
    if not session.scorer.layers or config.writes:
        return "off"
    if config.activation_cache != "auto":
        return config.activation_cache
    # The cache pays only for a run that reads its examples more than once.
    if config.steps * config.batch_size <= len(session.splits["train"]):
        return "off"
    if size <= _CACHE_SHARE * system_memory()[1]:
        return "ram"
    return "disk" if size <= _CACHE_SHARE * shutil.disk_usage(folder).free else "off"
