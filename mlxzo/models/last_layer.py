"""The last decoder layer at the scored positions only, for any layer of mlx-lm that reads keys and values from a cache.

A layer needs the output of the one before at every position, the head needs that of the last at the scored ones. So the
last layer is called twice: with all positions until its keys and values are known, then with the scored positions, for
which a cache returns these keys and values. Nothing here depends on the architecture: `CausalLM` compares the result
with that of the whole layer, and uses the whole layer where they differ.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from .lazy_layers import hidden_states

# Two rows on which `agrees` compares, with spans of different length and place.
TRIAL_TOKENS = ((1, 2, 3, 5, 7, 11, 13, 17), (17, 13, 11, 7, 5, 3, 2, 1))
_TRIAL_POSITIONS = (2, 3, 4, 14)


@dataclass(frozen=True)
class Spans:
    """Positions in R rows: in each row a span from the first to the last of them, all padded to one length P.

    Attributes:
        firsts: int32 [R]: the first position of each row.
        length: P, the length of the longest span.
        places: int32 [S]: the index of each position into the flattened [R * P].
    """

    firsts: np.ndarray
    length: int
    places: np.ndarray

    @staticmethod
    def of(positions: np.ndarray, rows: int, length: int) -> Spans:
        """Spans of positions int [S], indices into the flattened [rows * length]."""
        row, column = np.divmod(positions, length)
        firsts = np.full(rows, length - 1, np.int32)
        np.minimum.at(firsts, row, column)
        own = column - firsts[row]
        longest = int(own.max()) + 1
        return Spans(firsts, longest, (row * longest + own).astype(np.int32))


def at_positions(positions: mx.array, hidden: mx.array) -> mx.array:
    """[S, D] from hidden states [R, T, D] and positions [S] in the flattened [R * T]."""
    return hidden.reshape(-1, hidden.shape[-1])[positions]


def output_at(positions: mx.array, layer: Any, hidden: mx.array, args: tuple, kwargs: dict[str, Any]) -> mx.array:
    """Output [S, D] of a layer at some positions; not evaluated.

    Args:
        positions: int32 [S], into the flattened [R * T].
        hidden: the layer's input, [R, T, D].
        args, kwargs: its further arguments, for all positions.

    Raises:
        TypeError: the layer takes no mask or no cache, or keeps no keys and values in it.
    """
    rows, length, _ = hidden.shape
    spans = Spans.of(np.array(positions), rows, length)
    given = _bound(layer, hidden, args, kwargs).arguments
    mask = given.get("mask")
    known = mask is None or isinstance(mask, str) or mask.ndim == 2
    # For long spans little is saved, and their mask may take more memory than a kernel's own causal mask.
    if 2 * spans.length > length or not known:
        return at_positions(positions, hidden_states(layer(hidden, *args, **kwargs)))
    keys, values = _keys_and_values(layer, hidden, args, kwargs)
    # Beyond the end of its row a span is padding, for which any input will do.
    columns = mx.array(np.minimum(spans.firsts[:, None] + np.arange(spans.length), length - 1).astype(np.int32))
    chosen, args, kwargs = tree_map(lambda leaf: _at_columns(leaf, columns, length), (hidden, args, kwargs))
    cache = _Found(mx.array(spans.firsts), keys, values)
    changed: dict[str, Any] = {"cache": cache}
    if isinstance(mask, str):
        changed["mask"] = (mx.arange(length) <= columns[..., None])[:, None]
    if given.get("offset") is not None:
        # A layer that reads another one's keys is told where its queries begin.
        changed["offset"] = cache.offset
    return at_positions(mx.array(spans.places), hidden_states(_call(layer, chosen, args, kwargs, **changed)))


def _at_columns(leaf: Any, columns: mx.array, length: int) -> Any:
    """An argument of a layer as it is for some columns [R, P]: the part [R, P, D] of an array [R, T, D], and
    [R, 1, P, N], for all heads, of an array [T, N] (a mask, or a scale of the queries)."""
    if not isinstance(leaf, mx.array):
        return leaf
    if leaf.ndim == 3 and leaf.shape[:2] == (len(columns), length):
        return mx.take_along_axis(leaf, columns[..., None], axis=1)
    return leaf[columns][:, None] if leaf.ndim == 2 and len(leaf) == length else leaf


def agrees(layer: Any, hidden: mx.array, args: tuple, kwargs: dict[str, Any]) -> bool:
    """True if `output_at` gives what the whole layer gives, tried on the hidden states of TRIAL_TOKENS."""
    positions = mx.array(_TRIAL_POSITIONS)
    try:
        ours = output_at(positions, layer, hidden, args, kwargs)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False
    theirs = at_positions(positions, hidden_states(layer(hidden, *args, **kwargs)))
    # The layer's own share of its output counts: the residual stream may be much larger.
    share = mx.linalg.norm(theirs - at_positions(positions, hidden), axis=-1)
    return bool(mx.all(mx.linalg.norm(ours - theirs, axis=-1) <= 1e-2 * share).item())


class _Stop(Exception):
    """Ends a call of a layer once its keys and values are known."""


class _Keep:
    """In the place of a cache: keeps a layer's keys and values and ends the call, whose other results nobody needs.

    Without the end, replacements of large matrices would evaluate them while the graph is built.
    """

    offset = 0

    def __init__(self) -> None:
        self.found: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> NoReturn:
        self.found = keys, values
        raise _Stop


class _Found:
    """In the place of a cache: returns keys and values of all positions, whatever it is given.

    Attributes:
        offset: int32 [R]: the position of the first query of each row.
    """

    def __init__(self, offset: mx.array, keys: mx.array, values: mx.array):
        self.offset = offset
        self._keys, self._values = keys, values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return self._keys, self._values


def _keys_and_values(layer: Any, hidden: mx.array, args: tuple, kwargs: dict[str, Any]) -> tuple[mx.array, mx.array]:
    """Keys and values of a layer for all positions, as its attention reads them."""
    cache = _Keep()
    with suppress(_Stop):
        _call(layer, hidden, args, kwargs, cache=cache)
    if cache.found is None:
        raise TypeError("the layer keeps no keys and values in its cache")
    return cache.found


def _call(layer: Any, hidden: mx.array, args: tuple, kwargs: dict[str, Any], **changed: Any) -> mx.array:
    """Output of a layer with some of its arguments changed, by name."""
    bound = _bound(layer, hidden, args, kwargs)
    if unknown := changed.keys() - bound.signature.parameters.keys():
        raise TypeError(f"the layer has no argument {', '.join(sorted(unknown))}")
    bound.arguments.update(changed)
    return layer(*bound.args, **bound.kwargs)


def _bound(layer: Any, hidden: mx.array, args: tuple, kwargs: dict[str, Any]) -> inspect.BoundArguments:
    return inspect.signature(layer).bind(hidden, *args, **kwargs)
