"""The update of the stored weights: one pass, along any number of directions and for any number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from .inplace import Slot, rewrite
from .perturb import Direction
from .rounding import rounded

# Pieces of a tensor with fewer elements than this need negligible memory, however many are in flight.
_LARGE = 1 << 16

Terms = list[tuple[Direction, float]]
"""An update: w -= sum of factor * z over these directions."""


@dataclass(frozen=True)
class Update:
    """One step's move: w -= decay * w + sum of factor * z over `terms`.

    Attributes:
        step: with the run's seed, determines the random bits of the rounding.
        decay: learning rate times weight decay; applied to matrices only, not to norms, biases and gains.
    """

    step: int
    terms: Terms
    decay: float = 0.0


def apply_updates(slots: Mapping[str, Slot], names: Sequence[str], updates: Sequence[Update], seed: int) -> None:
    """Applies updates one after the other to the parameters `names`, in one pass over the weights.

    Each chunk of rows is read once, goes through all updates, and is written. bfloat16 and float16 weights are rounded
    stochastically after each update, so that one pass with several updates gives the same bits as several passes.

    Args:
        slots: the places of the parameters.
        seed: seed of the run.
    """
    effective = []
    for update in updates:
        terms = [(direction, factor) for direction, factor in update.terms if factor != 0.0]
        if terms or update.decay:
            effective.append(replace(update, terms=terms))
    if not effective:
        return
    for name in names:
        rewrite([slots[name]], partial(_moved, name, slots[name].get().shape, effective, seed))


def _moved(
    name: str, shape: tuple[int, ...], updates: Sequence[Update], seed: int, rows: range, weight: mx.array
) -> list[mx.array]:
    """The `rows` of a tensor of shape `shape` after the updates; `weight` [N, columns] holds them before."""
    numbers = mx.arange(rows.start, rows.stop)
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
        weight = rounded(moved, weight.dtype, name, shape, numbers, seed, update.step)
        del moved
    return [weight]
