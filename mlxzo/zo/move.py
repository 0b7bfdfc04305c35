"""The update of the stored weights: one pass, along any number of directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import mlx.core as mx

from ..inplace import Slot, rewrite
from .perturb import Direction
from .rounding import rounded

Terms = list[tuple[Direction, float]]
"""An update as it is applied: w -= sum of factor * z over the directions named."""


def move(
    slots: Mapping[str, Slot], names: Sequence[str], terms: Terms, seed: int, step: int, decay: float = 0.0
) -> None:
    """w -= decay * w + sum of factor * z over `terms`, for the parameters `names`.

    One pass over the weights, a chunk of rows at a time. float32 weights are updated plainly, bfloat16 and float16
    ones are rounded stochastically.

    Args:
        slots: where the parameters are.
        seed, step: name the random bits of the rounding.
        decay: share of every matrix that is taken away (learning rate times weight decay); vectors, which are norms,
            biases and gains, are left alone, as is usual.
    """
    terms = [(direction, factor) for direction, factor in terms if factor != 0.0]
    if not terms and not decay:
        return
    for name in names:
        rewrite([slots[name]], partial(_moved, name, slots[name].get().shape, terms, seed, step, decay))


def _moved(
    name: str, shape: tuple[int, ...], terms: Terms, seed: int, step: int, decay: float, rows: range, weight: mx.array
) -> list[mx.array]:
    """Some `rows` of a tensor of shape `shape` after an update; `weight` holds those rows: [N, columns]."""
    numbers = mx.arange(rows.start, rows.stop)
    moved = weight.astype(mx.float32)
    if decay and len(shape) > 1:
        moved = moved * (1.0 - decay)
    for direction, factor in terms:
        moved = moved + direction.scaled(name, shape, -factor, numbers)
    return [rounded(moved, weight.dtype, name, shape, numbers, seed, step)]
