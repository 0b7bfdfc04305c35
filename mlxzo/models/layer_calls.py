"""Calls of a model's decoder layers one at a time, whatever they are passed and pass on beside the hidden states.

In some architectures (Gemma 4) layers return their keys and values, and later layers read those instead of own ones.
`Wiring` finds such arrays by a trial and carries them in one array with the hidden states, so that whoever keeps, cuts
or differentiates the state between two layers need not know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from .lazy_layers import hidden_states


@dataclass(frozen=True)
class LayerCalls:
    """The arguments of a model's decoder layers for one micro-batch: `embedded` [R, T, D] for the first layer, and the
    further arguments of each, with an `Output` in the place of an array that an earlier layer returns."""

    embedded: mx.array
    args: list[tuple]
    kwargs: list[dict[str, Any]]

    def floating(self, number: int) -> list[mx.array]:
        """The floating arrays among the further arguments of a layer: those that may depend on weights."""
        return [leaf for leaf in _leaves((self.args[number], self.kwargs[number])) if _is_floating(leaf)]

    def with_floating(self, number: int, arrays: Sequence[mx.array]) -> LayerCalls:
        """The same calls, with other arrays in the places of those that `floating` returns for a layer."""
        new, calls = iter(arrays), replace(self, args=list(self.args), kwargs=list(self.kwargs))
        calls.args[number], calls.kwargs[number] = tree_map(
            lambda leaf: next(new) if _is_floating(leaf) else leaf, (self.args[number], self.kwargs[number])
        )
        return calls


@dataclass(frozen=True, order=True)
class Output:
    """Stands for an array that a layer returns beside its hidden states, by its place among them."""

    layer: int
    place: int


Record = Callable[[Sequence[tuple]], LayerCalls]
"""Records the arguments of all layers, given what each returns after the hidden states."""


@dataclass(frozen=True)
class Wiring:
    """The arrays that a model's decoder layers pass to one another.

    The state between two layers is one array [R, T, W]: the hidden states [R, T, D], and behind them, position by
    position, the keys and values of earlier layers that later ones read.

    Attributes:
        hidden_size: width D of the hidden states.
        rest: what each layer returns after the hidden states, with an `Output` in the place of each array.
        carried: heads and width of the arrays [R, heads, T, width] in the state, in their order in it.
    """

    hidden_size: int
    rest: tuple[tuple, ...]
    carried: dict[Output, tuple[int, int]]

    @staticmethod
    def found(returned: Sequence[Any], record: Record) -> Wiring:
        """The wiring of layers that returned this for one micro-batch.

        Raises:
            ValueError: a layer reads an array that is not [R, heads, T, width].
        """
        rows, length, hidden_size = hidden_states(returned[0]).shape
        rest = tuple(
            () if isinstance(result, mx.array) else _with_stand_ins(number, tuple(result[1:]))
            for number, result in enumerate(returned)
        )
        calls = record(rest)
        read = {leaf for leaf in _leaves((calls.args, calls.kwargs)) if isinstance(leaf, Output)}
        carried = {}
        for output in sorted(read):
            shape = _arrays(returned[output.layer])[output.place].shape
            if len(shape) != 4 or shape[::2] != (rows, length):
                raise ValueError(f"an array of shape {shape} that layer {output.layer} returns")
            carried[output] = shape[1], shape[3]
        return Wiring(hidden_size, rest, carried)

    def width(self, number: int) -> int:
        """Width W of the state before layer `number`; behind the last layer it is the hidden states alone."""
        return self.hidden_size + sum(heads * width for _, heads, width in self._before(number))

    def arguments(self, number: int, state: mx.array, calls: LayerCalls) -> tuple[mx.array, tuple, dict[str, Any]]:
        """The hidden states and the further arguments with which the model calls layer `number`."""
        args, kwargs, before = calls.args[number], calls.kwargs[number], self._before(number)
        if not before:
            return state, args, kwargs
        arrays, start = {}, self.hidden_size
        for output, heads, width in before:
            piece = state[..., start : start + heads * width]
            arrays[output] = piece.reshape(*piece.shape[:-1], heads, width).transpose(0, 2, 1, 3)
            start += heads * width
        args, kwargs = tree_map(lambda leaf: arrays[leaf] if isinstance(leaf, Output) else leaf, (args, kwargs))
        return state[..., : self.hidden_size], args, kwargs

    def passed_on(self, number: int, state: mx.array, returned: Any) -> mx.array:
        """The state after layer `number`, from the one before it and what the layer returned."""
        hidden = hidden_states(returned)
        if not self._before(number + 1):
            return hidden
        own = [_arrays(returned)[output.place] for output in self.carried if output.layer == number]
        packed = [array.transpose(0, 2, 1, 3).flatten(2) for array in own]
        return mx.concatenate([hidden, state[..., self.hidden_size :], *packed], axis=-1)

    def _before(self, number: int) -> list[tuple[Output, int, int]]:
        """The arrays in the state before layer `number`, with their heads and width; none behind the last layer."""
        if number == len(self.rest):
            return []
        return [(output, *size) for output, size in self.carried.items() if output.layer < number]


def _with_stand_ins(layer: int, rest: tuple) -> tuple:
    places = count()
    return tree_map(lambda leaf: Output(layer, next(places)) if isinstance(leaf, mx.array) else leaf, rest)


def _arrays(returned: Any) -> list[mx.array]:
    """The arrays that a layer returned after the hidden states, in the order of `Output.place`."""
    return [leaf for leaf in _leaves(tuple(returned[1:])) if isinstance(leaf, mx.array)]


def _leaves(tree: Any) -> list[Any]:
    return [leaf for _, leaf in tree_flatten(tree)]


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
