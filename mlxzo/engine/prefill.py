"""Rows read into mlx-lm's caches of keys and values, what they begin with in common only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, make_prompt_cache

from ..models.causal import CausalLM
from ..zo.perturb import View
from .encoding import Row

# Caches grow by so many tokens at a time; mlx-lm's own 256 would be more than most answers and many prompts.
_GROWTH = 32


class Prefill:
    """Reads rows by the weights as they stand, or as `view` shows them.

    Attributes:
        forgets: whether what follows the first scored position of a row can be read and forgotten again, which a
            recurrent state cannot.
    """

    def __init__(self, causal: CausalLM, view: View | None = None):
        self._causal = causal
        self._view = causal.view() if view is None else view
        self._shared: tuple[int, ...] = ()
        self._beginning = make_prompt_cache(causal.model)
        kinds = {type(cache) for cache in _copies(self._beginning, 1)}
        self.forgets = causal.exposes_hidden and kinds <= {BatchKVCache, BatchRotatingKVCache}

    def read(self, shared: tuple[int, ...], rows: Sequence[Row]) -> tuple[mx.array, list[Any]]:
        """Reads rows in one pass after the tokens that all of them begin with, which are read if they are others than
        the last time.

        Args:
            rows: whose first scored position is their last where `forgets` is false.

        Returns:
            States at the scored positions, one row after the other (see `CausalLM.read_on`), and the caches of the rows
            up to the first scored position of each.
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
        # What follows the first scored position is as good as padding: it is forgotten when all is read.
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
    """Caches of `count` sequences, each of which holds what those of one sequence hold."""
    copies = [cache.merge([cache] * count) for cache in caches]
    for cache in copies:
        if hasattr(cache, "step"):
            cache.step = _GROWTH
    return copies
