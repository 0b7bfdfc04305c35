"""The update of the stored weights: one pass, along any number of directions and for any number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from .inplace import Slot, rewrite
from .perturb import Direction
from .rounding import rounded

# Pieces of a tensor with fewer numbers than these wait in any number without taking memory to speak of.
_LARGE = 1 << 16

Terms = list[tuple[Direction, float]]
"""An update as it is applied: w -= sum of factor * z over the directions named."""


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


def apply_updates(slots: Mapping[str, Slot], names: Sequence[str], updates: Sequence[Update], seed: int) -> None:
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
        rewrite([slots[name]], partial(_moved, name, slots[name].get().shape, effective, seed))


def _moved(
    name: str, shape: tuple[int, ...], updates: Sequence[Update], seed: int, rows: range, weight: mx.array
) -> list[mx.array]:
    """Some `rows` of a tensor of shape `shape` after updates; `weight` holds those rows: [N, columns]."""
    numbers = mx.arange(rows.start, rows.stop)
    # Else MLX would make the noise of all directions before it adds the first.
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
