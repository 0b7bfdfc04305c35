"""The effective weights of a view, in the places of a model's stored ones while a graph is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..zo.chunks import CHUNK_BYTES
from ..zo.perturb import View
from .lazy_layers import EmbeddingRows, Given, LinearRows, NormByRow, RemadeLinear
from .slots import Slot, norms, parameter_slots, slots_of_kind


class EffectiveWeights:
    """The parameters of a model, and how each is made effective.

    Args:
        compute_dtype: dtype that weights are cast to while computing; None for native.

    Attributes:
        slots: the place of every parameter.
        reads_rows: embeddings are read by rows, as they may be the largest matrices. Not in a model that calls one as
            its head: chunks of rows are evaluated, which nothing may be in a graph that is differentiated.
    """

    def __init__(self, model: nn.Module, compute_dtype: mx.Dtype | None):
        self.slots = parameter_slots(model)
        self.reads_rows = True
        self._compute_dtype = compute_dtype
        self._linears = slots_of_kind(model, nn.Linear, nn.QuantizedLinear)
        self._embeddings = slots_of_kind(model, nn.Embedding, nn.QuantizedEmbedding)
        self._norms = norms(model)

    @contextmanager
    def installed(self, view: View, names: Iterable[str]) -> Iterator[None]:
        """Puts the effective weights of `names` in place while a graph is built, and restores the stored ones.

        A large matrix is not made whole: a replacement of its layer makes it in chunks of rows while it computes.
        """
        replaced: list[tuple[Slot, Any]] = []

        def put(slot: Slot, value: Any) -> None:
            replaced.append((slot, slot.get()))
            slot.set(value)

        done: set[str] = set()
        try:
            for name in names:
                if name in done:
                    continue
                path = name.rpartition(".")[0]
                slot = self._linears.get(path) or self._embeddings.get(path) or self._norms.get(path)
                if slot is not None and (replacement := self._replacement(slot.get(), path, view)) is not None:
                    put(slot, replacement)
                    done |= {f"{path}.{leaf}" for leaf in ("weight", "scales", "biases", "bias")}
                elif view.changes(name, self.slots[name].get()):
                    put(self.slots[name], view.dense(name, self.slots[name].get()))
            yield
        finally:
            for slot, value in reversed(replaced):
                slot.set(value)

    def _replacement(self, module: nn.Module, path: str, view: View) -> nn.Module | None:
        """A module that makes the effective weight of a linear layer, embedding or norm as it computes; None if that is
        made whole."""
        if path in self._norms:
            return NormByRow(module, path, view) if view.by_row(f"{path}.weight") else None
        if path in self._embeddings:
            return EmbeddingRows(module, path, view) if self.reads_rows else None
        weight, quantised = module["weight"], "scales" in module
        # MLX's quantised product on the CPU is some 20 times slower than dequantising and multiplying by BLAS.
        dequantised = quantised and self._compute_dtype is not None
        if isinstance(view, Given):
            cast = not quantised and weight.dtype != (self._compute_dtype or weight.dtype)
            return RemadeLinear(module, path, view) if dequantised or cast else None
        large = not quantised and 4 * weight.size > CHUNK_BYTES and view.changes(f"{path}.weight", weight)
        return LinearRows(module, path, view) if dequantised or large else None
