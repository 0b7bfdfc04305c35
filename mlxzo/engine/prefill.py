"""Prefill of mlx-lm's key-value caches with rows, their shared prefix read once: by one model, or by a population."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
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
        tokens, positions = _padded(rows, len(shared))
        caches = _copies(self._beginning, len(rows))
        # Tokens after the first scored position are treated as padding: `finalize` drops them from the caches.
        _prepare(caches, [row.first_position + 1 - len(shared) for row in rows], tokens.shape[1])
        states = self._causal.read_on(mx.array(tokens), caches, positions, self._view)
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


class PopulationPrefill:
    """Reads prompts for the members of a population, each with the weights of its member.

    The first layers, in which members do not differ, read a shared prefix and a prompt once for all members; the others
    read the prefix once a member.

    Args:
        layers: number of these first layers.
        tokens: most tokens in a pass over the shared prefix of several members.
    """

    def __init__(self, causal: CausalLM, population: Population, layers: int, tokens: int):
        self._causal, self._population, self._tokens = causal, population, tokens
        self._layers = layers if causal.splits and not causal.wiring.carried else 0
        self._shared: tuple[int, ...] | None = None
        # Of the prefix: the caches of the first layers, and of the others by member.
        self._first: list[Any] = []
        self._others: list[Any] = []
        # Of the prompts after it: the output of the first layers [T, D], and their caches.
        self._prompts: dict[tuple[int, ...], tuple[mx.array, list[Any]]] = {}

    def read(self, shared: tuple[int, ...], rows: Sequence[Row], members: Sequence[int]) -> tuple[mx.array, list[Any]]:
        """As `Prefill.read`; row i is that of member `members[i]`, and is scored at its last token only."""
        if shared != self._shared:
            self._shared, self._prompts = shared, {}
            self._first, self._others = self._read_shared(shared)
        tokens, positions = _padded(rows, len(shared))
        # What is not computed needs its caches as they were, by which the attention mask is made.
        caches = [*_copies(self._first, len(rows)), *_rows_of(self._others, members)]
        before, first = None, []
        if self._layers:
            found = [self._read_first(row.tokens[len(shared) :]) for row in rows]
            states = [mx.pad(own, [(0, tokens.shape[1] - len(own)), (0, 0)]) for own, _ in found]
            before = self._layers, mx.stack(states)
            first = [of_layer[0].merge(list(of_layer)) for of_layer in zip(*(own for _, own in found), strict=True)]
            _grow_slowly(first)
        _prepare(caches, [len(row.tokens) - len(shared) for row in rows], tokens.shape[1])
        view, others = self._population.of_rows(members), caches[self._layers :]
        states = self._causal.read_on(mx.array(tokens), caches, positions, view, before)
        for cache in others:
            cache.finalize()
        return states, [*first, *others]

    def _read_first(self, tokens: tuple[int, ...]) -> tuple[mx.array, list[Any]]:
        """The output of the first layers for a prompt after the shared prefix, [T, D], and their caches with it."""
        if tokens not in self._prompts:
            caches = [*deepcopy(self._first), *make_prompt_cache(self._causal.model)[self._layers :]]
            states = self._causal.read_first(mx.array([tokens], mx.int32), caches, self._layers)[0]
            self._prompts[tokens] = states, caches[: self._layers]
        return self._prompts[tokens]

    def _read_shared(self, tokens: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        """Caches of sequences that hold these tokens: of the first layers one, of the others one for each member."""
        causal, size = self._causal, self._population.size
        plain = make_prompt_cache(causal.model)
        _grow_slowly(plain)
        if not tokens:
            return plain[: self._layers], _copies(plain, size)[self._layers :]
        before = None
        row = mx.array([tokens], mx.int32)
        if self._layers:
            states = causal.read_first(row, plain, self._layers)
        some = max(1, self._tokens // len(tokens))
        others: list[Any] = []
        for start in range(0, size, some):
            members = range(start, min(start + some, size))
            caches = _copies(make_prompt_cache(causal.model), len(members))
            if self._layers:
                before = self._layers, mx.repeat(states, len(members), axis=0)
            rows, view = mx.repeat(row, len(members), axis=0), self._population.of_rows(members)
            mx.eval(causal.read_on(rows, caches, mx.array([len(tokens) - 1]), view, before))
            for cache, more in zip(others, caches[self._layers :], strict=False):
                cache.extend(more)
            others = others or caches[self._layers :]
        return plain[: self._layers], others


def _padded(rows: Sequence[Row], start: int) -> tuple[np.ndarray, mx.array]:
    """The tokens of rows from `start` on, int32 [R, T] padded on the right, and their scored positions in [R * T]."""
    length = max(len(row.tokens) for row in rows) - start
    tokens = np.zeros((len(rows), length), np.int32)
    positions: list[int] = []
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens) - start] = row.tokens[start:]
        zero = number * length - start
        positions += range(zero + row.first_position, zero + len(row.tokens))
    return tokens, mx.array(positions)


def _prepare(caches: Sequence[Any], lengths: Sequence[int], longest: int) -> None:
    """Prepares caches for rows of `longest` tokens, of which `finalize` drops those after the first `lengths`."""
    for cache in caches:
        cache.prepare(lengths=lengths, right_padding=[longest - length for length in lengths])


def _copies(caches: Sequence[Any], count: int) -> list[Any]:
    """The caches of one sequence, repeated for `count` sequences."""
    copies = [cache.merge([cache] * count) for cache in caches]
    _grow_slowly(copies)
    return copies


def _grow_slowly(caches: Sequence[Any]) -> None:
    for cache in caches:
        if hasattr(cache, "step"):
            cache.step = _GROWTH


def _rows_of(caches: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """Copies of some rows of caches, which may repeat."""
    copies = [copy(cache) for cache in caches]
    for cache in copies:
        cache.filter(list(rows))
    return copies
