"""Temporary replacements of modules while a model's graph is built: layers with lazy weights, and omitted layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..zo.chunks import CHUNK_BYTES
from ..zo.perturb import View


class Given(View):
    """A view with some weights given as arrays to differentiate, the others as stored; all cast to `dtype`.

    Nothing may be evaluated while a graph is built under it: MLX would keep every intermediate result for the gradient.

    Args:
        given: whole weights by name.
        looked_up: rows of weights by name, returned for any row numbers.
    """

    def __init__(
        self,
        given: Mapping[str, mx.array],
        dtype: mx.Dtype | None = None,
        looked_up: Mapping[str, mx.array] | None = None,
    ):
        super().__init__(dtype)
        self.given, self.looked_up = given, looked_up or {}

    def changes(self, name: str, weight: mx.array) -> bool:
        return name in self.given or super().changes(name, weight)

    def dense(self, name: str, weight: mx.array) -> mx.array:
        return super().dense(name, self.given.get(name, weight))

    def rows(self, name: str, weight: mx.array, rows: mx.array) -> mx.array:
        if name in self.looked_up:
            return self._cast(self.looked_up[name], weight.dtype)
        return super().rows(name, self.given.get(name, weight), rows)


def chunks(rows: int, columns: int) -> Iterator[mx.array]:
    """Row numbers 0 to `rows`, in chunks whose float32 [rows, columns] has about CHUNK_BYTES.

    The caller evaluates its result for a chunk before it takes the next; otherwise MLX would hold many chunks at once.
    """
    step = max(32, CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        yield mx.arange(start, min(start + step, rows))


def weight_rows(module: nn.Module, name: str, rows: mx.array | None, view: View) -> mx.array:
    """Effective rows [N, columns] (None: all) of the weight of a linear layer or embedding, dequantised if needed."""

    def seen(leaf: str) -> mx.array:
        stored = module[leaf]
        return view.dense(f"{name}.{leaf}", stored) if rows is None else view.rows(f"{name}.{leaf}", stored, rows)

    if "scales" not in module:
        return seen("weight")
    biases = seen("biases") if "biases" in module else None
    mode = getattr(module, "mode", "affine")
    packed = module["weight"] if rows is None else module["weight"][rows]
    return mx.dequantize(packed, seen("scales"), biases, group_size=module.group_size, bits=module.bits, mode=mode)


def add_bias(y: mx.array, module: nn.Module, name: str, view: View) -> mx.array:
    """Outputs [..., N] of a linear layer with its effective bias, if it has one, in the dtype of `y`."""
    return y + view.dense(f"{name}.bias", module["bias"]).astype(y.dtype) if "bias" in module else y


class EmbeddingRows(nn.Module):
    """Replaces an embedding during a forward pass: only the rows that are looked up are made effective."""

    def __init__(self, embedding: nn.Module, name: str, view: View):
        super().__init__()
        self._embedding, self._name, self._view = embedding, name, view

    def __call__(self, tokens: mx.array) -> mx.array:
        rows = weight_rows(self._embedding, self._name, tokens.reshape(-1), self._view)
        return rows.reshape(*tokens.shape, -1)

    def as_linear(self, hidden: mx.array) -> mx.array:
        return LinearRows(self._embedding, self._name, self._view)(hidden)


class LinearRows(nn.Module):
    """Replaces a linear layer, quantised or not: its effective weight is made in chunks of rows."""

    def __init__(self, linear: nn.Module, name: str, view: View):
        super().__init__()
        self._linear, self._name, self._view = linear, name, view

    def __call__(self, x: mx.array) -> mx.array:
        linear, parts = self._linear, []
        rows, columns = linear["weight"].shape[0], x.shape[-1]
        for chunk in chunks(rows, columns):
            parts.append(x @ weight_rows(linear, self._name, chunk, self._view).astype(x.dtype).T)
            if chunk.size < rows:
                mx.eval(parts[-1])
        y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
        return add_bias(y, linear, self._name, self._view)


class RemadeLinear(nn.Module):
    """Replaces a linear layer under a `Given` view: its effective weight is not kept for the backward pass.

    The stored weight, in half precision or quantised, is cast or dequantised again for the gradient.
    """

    def __init__(self, linear: nn.Module, name: str, view: Given):
        super().__init__()
        self._linear, self._name, self._view = linear, name, view

    def __call__(self, x: mx.array) -> mx.array:
        view, names = self._view, [f"{self._name}.{leaf}" for leaf in self._linear]
        own = {name: view.given[name] for name in names if name in view.given}
        return mx.checkpoint(self._product)(own, x)

    def _product(self, given: Mapping[str, mx.array], x: mx.array) -> mx.array:
        linear, view = self._linear, Given(given, self._view.dtype)
        y = x @ weight_rows(linear, self._name, None, view).astype(x.dtype).T
        return add_bias(y, linear, self._name, view)


class NormByRow(nn.Module):
    """Replaces a norm under a view with weights by row: each row of the batch is normalised with its own."""

    def __init__(self, norm: nn.Module, name: str, view: View):
        super().__init__()
        self._norm, self._name, self._view = norm, name, view

    def __call__(self, x: mx.array, *gate: mx.array) -> mx.array:
        norm, stored = self._norm, {leaf: self._norm[leaf] for leaf in ("weight", "bias") if leaf in self._norm}
        view, names = self._view, [f"{self._name}.{leaf}" for leaf in stored]
        by_row = [view.by_row(name) for name in names]
        weights = [view.dense(name, value) for name, value in zip(names, stored.values(), strict=True)]

        def of_row(x: mx.array, *rest: mx.array) -> mx.array:
            own, gate = rest[: len(stored)], rest[len(stored) :]
            for leaf, weight in zip(stored, own, strict=True):
                norm[leaf] = weight
            return norm(x, *gate)

        weights = [weight[:, 0] if rows else weight for weight, rows in zip(weights, by_row, strict=True)]
        axes = (0, *(0 if rows else None for rows in by_row), *(0 for _ in gate))
        try:
            return mx.vmap(of_row, in_axes=axes)(x, *weights, *gate)
        finally:
            for leaf, value in stored.items():
                norm[leaf] = value


def hidden_states(returned: Any) -> mx.array:
    """The hidden states among what a decoder layer returns: all, or the first of several values."""
    return returned if isinstance(returned, mx.array) else returned[0]


class LazyLayer:
    """Replaces a decoder layer, and passes on its attributes, which some models read.

    Args:
        rest: values that the layer returns after the hidden states.
    """

    def __init__(self, layer: Any, rest: tuple = ()):
        self._layer, self._rest = layer, rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def _returned(self, hidden: mx.array) -> Any:
        return (hidden, *self._rest) if self._rest else hidden


class PassThrough(LazyLayer):
    """Returns its input."""

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> Any:
        return self._returned(hidden)


class EagerLayer(LazyLayer):
    """Evaluates its output at once, with weights that the context manager `installed()` puts in place."""

    def __init__(self, layer: Any, installed: Callable[[], AbstractContextManager[None]]):
        super().__init__(layer)
        self._installed = installed

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> Any:
        with self._installed():
            returned = self._layer(hidden, *args, **kwargs)
        mx.eval(returned)
        return returned


class Observer(EagerLayer):
    """Keeps what the layer returned as well."""

    returned: Any

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> Any:
        self.returned = super().__call__(hidden, *args, **kwargs)
        return self.returned


class Recorder(LazyLayer):
    """Returns its input, and records its arguments."""

    seen: mx.array
    args: tuple
    kwargs: dict[str, Any]

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> Any:
        self.seen, self.args, self.kwargs = hidden, args, kwargs
        return self._returned(hidden)


class Inject(LazyLayer):
    """Returns fixed hidden states."""

    def __init__(self, value: mx.array, layer: Any, rest: tuple = ()):
        super().__init__(layer, rest)
        self._value = value

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> Any:
        return self._returned(self._value)
