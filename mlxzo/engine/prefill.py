"""Prefill of mlx-lm's key-value caches with rows, their shared prefix read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, make_prompt_cache

from ..models.causal import CausalLM
from ..zo.perturb import View
from .encoding import Row

# Tokens that a cache grows by; mlx-lm's own 256 exceed most answers and many prompts.
_GROWTH = 32


class Prefill:
    """Reads rows with the current weights, or with those of `view`.

    Attributes:
        supports_trim: true if the caches can drop the tokens after a row's first scored position, which a recurrent
            state cannot.
    """

    def __init__(self, causal: CausalLM, view: View | None = None):
        self._causal = causal
        self._view = causal.view() if view is None else view
        self._shared: tuple[int, ...] = ()
        self._beginning = make_prompt_cache(causal.model)
        kinds = {type(cache) for cache in _copies(self._beginning, 1)}
        self.supports_trim = causal.exposes_hidden and kinds <= {BatchKVCache, BatchRotatingKVCache}

    def read(self, shared: tuple[int, ...], rows: Sequence[Row]) -> tuple[mx.array, list[Any]]:
        """Reads rows in one pass after their shared prefix, which is read only if it differs from the last one.

        Args:
            shared: tokens that all rows begin with.
            rows: unless `supports_trim`, the first scored position of each is its last.

        Returns:
            States at the scored positions, one row after the other (see `CausalLM.read_on`), and the caches of the
            rows, each up to its first scored position.
        """
        if shared != self._shared:
            self._shared, self._beginning = shared, self._read_shared(shared)
        start = len(shared)
        length = max(len(row.tokens) for row in rows) - start
        tokens = np.zeros((len(rows), length), np.int32)
        positions: list[int] = []
        for number, row in enumerate(rows):
            tokens[number, : len(row.tokens) - start] = row.tokens[start:]
            zero = number * length - start
            positions += range(zero + row.first_position, zero + len(row.tokens))
        caches = _copies(self._beginning, len(rows))
        # Tokens after the first scored position are treated as padding: `finalize` drops them from the caches.
        lengths = [row.first_position + 1 - start for row in rows]
        for cache in caches:
            cache.prepare(lengths=lengths, right_padding=[length - kept for kept in lengths])
        states = self._causal.read_on(mx.array(tokens), caches, mx.array(positions), self._view)
        for cache in caches:
            cache.finalize()
        return states, caches

    def _read_shared(self, tokens: tuple[int, ...]) -> list[Any]:
        """Caches of one sequence that holds these tokens."""
        caches = make_prompt_cache(self._causal.model)
        if tokens:
            row, last = mx.array([tokens], mx.int32), mx.array([len(tokens) - 1])
            mx.eval(self._causal.read_on(row, caches, last, self._view))
        return caches


def _copies(caches: Sequence[Any], count: int) -> list[Any]:
    """The caches of one sequence, repeated for `count` sequences."""
    copies = [cache.merge([cache] * count) for cache in caches]
    for cache in copies:
        if hasattr(cache, "step"):
            cache.step = _GROWTH
    return copies
