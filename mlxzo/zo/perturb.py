"""Random directions over the trainable parameters, and views of the weights perturbed along them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import mlx.core as mx

from .noise import direction_key, scaled_direction


@dataclass(frozen=True)
class Direction:
    """A random direction z, never stored: each part is generated from its names when it is needed.

    Attributes:
        seed, step, index: names of the direction; `index` counts the directions of a step.
        kind: `sign` or `gaussian`.
        scales: entry length of z for each trainable tensor.
    """

    seed: int
    step: int
    index: int
    kind: str
    scales: Mapping[str, float]

    def scaled(self, name: str, shape: tuple[int, ...], factor: float, rows: mx.array | None = None) -> mx.array:
        """factor * z for one tensor: float32, `shape`; or [N, columns] for row numbers `rows` [N]."""
        key = direction_key(self.seed, self.step, self.index, name)
        return scaled_direction(key, shape, factor * self.scales[name], self.kind, rows)


class View:
    """The effective weights of a forward pass; this base class casts the stored ones to `dtype` (None: no cast)."""

    def __init__(self, dtype: mx.Dtype | None = None):
        self.dtype = dtype

    def changes(self, name: str, weight: mx.array) -> bool:
        """True if the effective weight differs from the stored one."""
        floating = mx.issubdtype(weight.dtype, mx.floating)
        return floating and self.dtype is not None and weight.dtype != self.dtype

    def by_row(self, name: str) -> bool:
        """True if each row of the batch has an effective weight of its own (see `Population`)."""
        return False

    def dense(self, name: str, weight: mx.array) -> mx.array:
        """The effective weight, shape of `weight`."""
        return self._cast(weight, weight.dtype)

    def rows(self, name: str, weight: mx.array, rows: mx.array) -> mx.array:
        """Rows numbered `rows` (int [N]) of the effective weight: [N, columns]."""
        return self._cast(weight_rows(weight, rows), weight.dtype)

    def _cast(self, values: mx.array, stored: mx.Dtype) -> mx.array:
        return values.astype(self.dtype or stored)


class Perturbation(View):
    """Weights at w + eps * z, computed when they are read; the stored weights do not change."""

    def __init__(self, direction: Direction, eps: float, dtype: mx.Dtype | None = None):
        super().__init__(dtype)
        self.direction, self.eps = direction, eps

    def changes(self, name: str, weight: mx.array) -> bool:
        return name in self.direction.scales or super().changes(name, weight)

    def dense(self, name: str, weight: mx.array) -> mx.array:
        if name not in self.direction.scales:
            return super().dense(name, weight)
        delta = self.direction.scaled(name, weight.shape, self.eps)
        return self._cast(weight.astype(mx.float32) + delta, weight.dtype)

    def rows(self, name: str, weight: mx.array, rows: mx.array) -> mx.array:
        if name not in self.direction.scales:
            return super().rows(name, weight, rows)
        delta = self.direction.scaled(name, weight.shape, self.eps, rows)
        return self._cast(weight_rows(weight, rows).astype(mx.float32) + delta, weight.dtype)


class Population(View):
    """The weights of several members in one batch, whose row i is computed with those of member `members[i]`.

    Only parameters that act on each row by themselves can be so: vectors that are multiplied with or added to what a
    layer computes, and the factors of LoRA. Of a vector [D] `dense` gives [R, 1, D], of a matrix [A, B] [R, A, B].

    Args:
        views: the weights of each member.
        names: the parameters in which they differ.
    """

    def __init__(self, views: Sequence[View], names: Collection[str], dtype: mx.Dtype | None = None):
        super().__init__(dtype)
        self._views, self._names = views, frozenset(names)
        self._stacks: dict[str, mx.array] = {}
        self.members = mx.array([], mx.int32)

    def of_rows(self, members: Sequence[int]) -> Population:
        """The same population for a batch with these members."""
        view = copy(self)
        view.members = mx.array(list(members), mx.int32)
        return view

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self._views)

    def by_row(self, name: str) -> bool:
        return name in self._names

    def changes(self, name: str, weight: mx.array) -> bool:
        return self.by_row(name) or super().changes(name, weight)

    def dense(self, name: str, weight: mx.array) -> mx.array:
        if not self.by_row(name):
            return super().dense(name, weight)
        if name not in self._stacks:
            self._stacks[name] = mx.stack([view.dense(name, weight) for view in self._views])
            mx.eval(self._stacks[name])
        rows = self._stacks[name][self.members]
        return rows[:, None] if weight.ndim == 1 else rows


def weight_rows(weight: mx.array, rows: mx.array) -> mx.array:
    """Rows numbered `rows` (int [N]) of a tensor of any shape, seen as a table of its last axis: [N, columns]."""
    return weight.reshape(-1, weight.shape[-1])[rows]
