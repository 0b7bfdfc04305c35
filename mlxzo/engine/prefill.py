"""Prefill of mlx-lm's key-value caches with rows, their shared prefix read once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, make_prompt_cache

from ..models.causal import CausalLM
from ..zo.perturb import Population, View
from .encoding import Row

# Tokens that a cache grows by; mlx-lm's own 256 exceed most answers and many prompts.
_GROWTH = 32


class Prefill:
    """Reads rows with the current weights, or with those of `view`.

    Args:
        view: the weights; of a population, each row is read with those of its member.
        tokens: most tokens in a pass over the shared prefix of several members.

    Attributes:
        supports_trim: true if the caches can drop the tokens after a row's first scored position, which a recurrent
            state cannot.
    """

    def __init__(self, causal: CausalLM, view: View | None = None, tokens: int = 256):
        self._causal = causal
        self._view = causal.view() if view is None else view
        self._tokens = tokens
        self._shared: tuple[int, ...] = ()
        # The caches of the shared prefix: of one sequence, or of one for each member of a population.
        self._beginning = make_prompt_cache(causal.model)
        kinds = {type(cache) for cache in _copies(self._beginning, 1)}
        self.supports_trim = causal.exposes_hidden and kinds <= {BatchKVCache, BatchRotatingKVCache}

    def read(
        self, shared: tuple[int, ...], rows: Sequence[Row], members: Sequence[int] = ()
    ) -> tuple[mx.array, list[Any]]:
        """Reads rows in one pass after their shared prefix, which is read only if it differs from the last one.

        Args:
            shared: tokens that all rows begin with.
            rows: unless `supports_trim`, the first scored position of each is its last.
            members: of a population, one for each row.

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
        view = self._view
        if not isinstance(view, Population):
            caches = _copies(self._beginning, len(rows))
        else:
            view = view.of_rows(members)
            caches = _rows_of(self._beginning, members) if shared else self._empty(len(rows))
        # Tokens after the first scored position are treated as padding: `finalize` drops them from the caches.
        lengths = [row.first_position + 1 - start for row in rows]
        for cache in caches:
            cache.prepare(lengths=lengths, right_padding=[length - kept for kept in lengths])
        states = self._causal.read_on(mx.array(tokens), caches, mx.array(positions), view)
        for cache in caches:
            cache.finalize()
        return states, caches

    def _read_shared(self, tokens: tuple[int, ...]) -> list[Any]:
        """Caches of one sequence that holds these tokens, or of one for each member of a population."""
        view = self._view
        if not isinstance(view, Population):
            return self._read_alike(tokens, make_prompt_cache(self._causal.model), 1, view)
        some = max(1, self._tokens // max(1, len(tokens)))
        caches: list[Any] = []
        for first in range(0, view.size, some):
            members = range(first, min(first + some, view.size))
            read = self._read_alike(tokens, self._empty(len(members)), len(members), view.of_rows(members))
            for cache, more in zip(caches, read, strict=False):
                cache.extend(more)
            caches = caches or read
        return caches

    def _read_alike(self, tokens: tuple[int, ...], caches: list[Any], count: int, view: View) -> list[Any]:
        """The empty caches of `count` sequences, extended by the same tokens each."""
        if tokens:
            rows, last = mx.array([tokens] * count, mx.int32), mx.array([len(tokens) - 1])
            mx.eval(self._causal.read_on(rows, caches, last, view))
        return caches

    def _empty(self, count: int) -> list[Any]:
        return _copies(make_prompt_cache(self._causal.model), count)


def _copies(caches: Sequence[Any], count: int) -> list[Any]:
    """The caches of one sequence, repeated for `count` sequences."""
    copies = [cache.merge([cache] * count) for cache in caches]
    for cache in copies:
        if hasattr(cache, "step"):
            cache.step = _GROWTH
    return copies


def _rows_of(caches: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """Copies of some rows of caches, which may repeat."""
    copies = [copy(cache) for cache in caches]
    for cache in copies:
        cache.filter(list(rows))
    return copies
