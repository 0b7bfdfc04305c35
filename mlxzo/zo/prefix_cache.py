"""Hidden states at the first trainable layer, kept in memory: frozen layers always give an example the same."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

Tokens = tuple[int, ...]


class PrefixCache:
    """Hidden states of token sequences, by their content: the same sequence is kept once."""

    def __init__(self) -> None:
        self._states: dict[Tokens, mx.array] = {}

    def __contains__(self, tokens: Tokens) -> bool:
        return tokens in self._states

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self._states.values())

    def put(self, rows: Sequence[Tokens], hidden: mx.array) -> None:
        """Keeps hidden [R, T, D] of `rows`, without the padding."""
        states = [hidden[i, : len(tokens)] for i, tokens in enumerate(rows)]
        # A slice would keep the whole batch alive: copies do not.
        states = [mx.contiguous(state) for state in states]
        mx.eval(states)
        self._states.update(zip(rows, states, strict=True))

    def get(self, rows: Sequence[Tokens], length: int) -> mx.array:
        """Hidden [R, length, D], zeros on the right where a row is shorter.

        Raises:
            KeyError: a row was never put.
        """
        padded = [mx.pad(self._states[t], ((0, length - len(t)), (0, 0))) for t in rows]
        return mx.stack(padded)
