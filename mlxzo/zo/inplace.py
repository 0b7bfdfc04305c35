"""In-place rewriting of tensors in chunks of rows, so that an update never holds a second copy of a large one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx

from .chunks import CHUNK_BYTES, HALF_PRECISION_CHUNK_BYTES


class Slot(Protocol):
    """The place of a stored tensor."""

    def get(self) -> mx.array: ...

    def set(self, value: mx.array) -> None: ...


def rewrite(slots: Sequence[Slot], new: Callable[..., Sequence[mx.array]]) -> None:
    """Replaces tensors of one shape by functions of them, row by row.

    Args:
        slots: their places; a tensor that is referenced elsewhere is copied.
        new: called with a range of row numbers and these rows of every tensor, each [N, columns]; returns the new rows
            in the same order and dtypes. The last axis is the columns; a vector or scalar is one row.
    """
    shape = slots[0].get().shape
    columns = shape[-1] if shape else 1
    rows = slots[0].get().size // columns
    chunk_bytes = CHUNK_BYTES if slots[0].get().dtype == mx.float32 else HALF_PRECISION_CHUNK_BYTES
    limit = max(1, chunk_bytes // (4 * columns * len(slots)))
    for slot in slots:
        slot.set(slot.get().reshape(rows, columns))
    if rows <= limit:
        # Without another reference to the old tensor, its buffer is reused for the new one.
        for slot, value in zip(slots, new(range(rows), *(slot.get() for slot in slots)), strict=True):
            slot.set(value)
        mx.eval([slot.get() for slot in slots])
    else:
        for start in range(0, rows, limit):
            stop = min(start + limit, rows)
            pieces = new(range(start, stop), *(slot.get()[start:stop] for slot in slots))
            mx.eval(pieces)
            # On Metal the handlers of finished command buffers hold their inputs a little longer than `eval` waits, and
            # the tensor would be copied instead of changed in place.
            mx.synchronize()
            for slot, piece in zip(slots, pieces, strict=True):
                slot.get()[start:stop] = piece
            del pieces
            mx.eval([slot.get() for slot in slots])
    for slot in slots:
        slot.set(slot.get().reshape(shape))
