"""The update of the stored weights: one pass, along any number of directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx

from .noise import random_words
from .perturb import CHUNK_BYTES, Direction
from .rounding import stochastic_round

Terms = list[tuple[Direction, float]]
"""An update as it is applied: w -= sum of factor * z over the directions named."""


class Slot(Protocol):
    """The place of a stored parameter."""

    def get(self) -> mx.array: ...

    def set(self, value: mx.array) -> None: ...


@dataclass(frozen=True)
class Update:
    """One step's move: w -= decay * w + sum of factor * z over `terms`.

    Attributes:
        step: with the run's seed, names the random bits of the rounding.
        decay: share of every matrix that is taken away (learning rate times weight decay); vectors, which are norms,
            biases and gains, are left alone, as is usual.
    """

    step: int
    terms: Terms
    decay: float = 0.0


def move(slots: Mapping[str, Slot], names: Sequence[str], updates: Sequence[Update], seed: int) -> None:
    """Applies updates one after the other to the parameters `names`, in one pass over the weights.

    A chunk of rows at a time is read, goes through all updates, and is written. float32 weights are updated plainly,
    bfloat16 and float16 ones are rounded stochastically after each update, so that several updates in one pass give
    the bits of as many passes.

    Args:
        slots: where the parameters are.
        seed: that of the run.
    """
    effective = []
    for update in updates:
        terms = [(direction, factor) for direction, factor in update.terms if factor != 0.0]
        if terms or update.decay:
            effective.append(replace(update, terms=terms))
    if not effective:
        return
    for name in names:
        slot = slots[name]
        weight = slot.get()
        shape = weight.shape
        columns = shape[-1] if shape else 1
        rows = weight.size // columns
        limit = max(1, CHUNK_BYTES // (4 * columns))
        if rows <= limit:
            slot.set(_moved(name, weight, None, shape, effective, seed))
            # With no other reference to the old weight, its buffer is reused for the new one.
            del weight
            mx.eval(slot.get())
            continue
        # A slice is written in place only where nothing else refers to the matrix.
        slot.set(weight.reshape(rows, columns))
        del weight
        for start in range(0, rows, limit):
            numbers = mx.arange(start, min(start + limit, rows))
            chunk = _moved(name, slot.get()[start : start + limit], numbers, shape, effective, seed)
            mx.eval(chunk)
            slot.get()[start : start + limit] = chunk
            mx.eval(slot.get())
        slot.set(slot.get().reshape(shape))


def _moved(
    name: str, weight: mx.array, rows: mx.array | None, shape: tuple[int, ...], updates: Sequence[Update], seed: int
) -> mx.array:
    """The rows numbered `rows` (None: all) of a tensor of shape `shape` after updates; `weight` holds those rows."""
    for update in updates:
        moved = weight.astype(mx.float32)
        if update.decay and len(shape) > 1:
            moved = moved * (1.0 - update.decay)
        for direction, factor in update.terms:
            moved = moved + direction.scaled(name, shape, -factor, rows)
        if weight.dtype != mx.float32:
            words = random_words(seed, update.step, 0, f"rounding|{name}", shape, rows)
            moved = stochastic_round(moved, weight.dtype, words)
        weight = moved
    return weight
