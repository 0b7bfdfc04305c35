"""The update of the stored weights: one pass, along any number of directions and for any number of steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from .inplace import Slot, rewrite
from .perturb import Direction, View, weight_rows
from .rounding import rounded

# Pieces of a tensor with fewer elements than this need negligible memory, however many are in flight.
_LARGE = 1 << 16

Terms = list[tuple[Direction, float]]
"""An update: w -= sum of factor * z over these directions."""


@dataclass(frozen=True)
class Update:
    """One step's move: w -= decay * w + sum of factor * z over `terms`, and then w += pull * (start - w).

    Attributes:
        step: with the run's seed, determines the random bits of the rounding.
        decay: learning rate times weight decay; applied to matrices only, not to norms, biases and gains.
        pull: share of the way back to the weights before the first step (arXiv 2605.30148).
    """

    step: int
    terms: Terms
    decay: float = 0.0
    pull: float = 0.0


def apply_updates(
    slots: Mapping[str, Slot],
    names: Sequence[str],
    updates: Sequence[Update],
    seed: int,
    start: Mapping[str, mx.array] | None = None,
) -> None:
    """Applies updates one after the other to the parameters `names`, in one pass over the weights.

    Each chunk of rows is read once, goes through all updates, and is written. bfloat16 and float16 weights are rounded
    stochastically after each update, so that one pass with several updates gives the same bits as several passes.

    Args:
        slots: the places of the parameters.
        seed: seed of the run.
        start: the parameters before the first step, where an update pulls towards them.
    """
    effective = []
    for update in updates:
        terms = [(direction, factor) for direction, factor in update.terms if factor != 0.0]
        if terms or update.decay or update.pull:
            effective.append(replace(update, terms=terms))
    if not effective:
        return
    for name in names:
        origin = None if start is None else start[name]
        rewrite([slots[name]], partial(_moved_range, name, slots[name].get().shape, effective, seed, origin))


class Moved(View):
    """The weights after an update that is not applied yet, computed when they are read.

    They have the bits that `apply_updates` would store, cast to the compute dtype; the stored weights do not change.

    Args:
        update: the update; one without terms gives the stored weights, by the same forward pass as any other update.
        names: the parameters that it moves.
        seed: seed of the run.
    """

    def __init__(self, update: Update, names: Collection[str], seed: int, dtype: mx.Dtype | None = None):
        super().__init__(dtype)
        terms = [(direction, factor) for direction, factor in update.terms if factor != 0.0]
        self.update, self.names, self.seed = replace(update, terms=terms), names, seed

    def changes(self, name: str, weight: mx.array) -> bool:
        return name in self.names or super().changes(name, weight)

    def dense(self, name: str, weight: mx.array) -> mx.array:
        if name not in self.names or not self.update.terms:
            return super().dense(name, weight)
        table = weight.reshape(-1, weight.shape[-1] if weight.shape else 1)
        moved = _moved(name, weight.shape, [self.update], self.seed, mx.arange(len(table)), table)
        return self._cast(moved.reshape(weight.shape), weight.dtype)

    def rows(self, name: str, weight: mx.array, rows: mx.array) -> mx.array:
        if name not in self.names or not self.update.terms:
            return super().rows(name, weight, rows)
        moved = _moved(name, weight.shape, [self.update], self.seed, rows, weight_rows(weight, rows))
        return self._cast(moved, weight.dtype)


def _moved_range(
    name: str,
    shape: tuple[int, ...],
    updates: Sequence[Update],
    seed: int,
    start: mx.array | None,
    rows: range,
    weight: mx.array,
) -> list[mx.array]:
    """As `_moved`, for the rows of a range; `start` is the whole tensor."""
    numbers = mx.arange(rows.start, rows.stop)
    origin = None if start is None else start.reshape(-1, weight.shape[-1])[rows.start : rows.stop]
    return [_moved(name, shape, updates, seed, numbers, weight, origin)]


def _moved(
    name: str,
    shape: tuple[int, ...],
    updates: Sequence[Update],
    seed: int,
    numbers: mx.array,
    weight: mx.array,
    start: mx.array | None = None,
) -> mx.array:
    """Some rows of a tensor of shape `shape` after the updates.

    Args:
        numbers: numbers of the rows, int [N].
        weight: these rows before the updates, [N, columns].
        start: these rows before the first step, for updates that pull.
    """
    # Otherwise MLX would generate the noise of all directions before it adds the first.
    one_by_one = weight.size >= _LARGE and sum(len(update.terms) for update in updates) > 1
    for update in updates:
        moved = weight.astype(mx.float32)
        if update.decay and len(shape) > 1:
            moved = moved * (1.0 - update.decay)
        for direction, factor in update.terms:
            moved = moved + direction.scaled(name, shape, -factor, numbers)
            if one_by_one:
                mx.eval(moved)
        if update.pull and start is not None:
            moved = moved + update.pull * (start.astype(mx.float32) - moved)
        weight = rounded(moved, weight.dtype, name, shape, numbers, seed, update.step)
        del moved
    return weight
