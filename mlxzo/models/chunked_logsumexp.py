"""A differentiable log-sum-exp over the vocabulary that never holds all logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

Arrays = dict[str, mx.array]

Logits = Callable[[mx.array, Arrays, Arrays, mx.array], mx.array]
"""Logits [S, N] of the tokens `chunk` [N], from hidden states [S, D], these rows of the head's matrices, and the whole
vectors of the head (its bias)."""


def streamed_logsumexp(
    logits: Logits, chunks: Sequence[mx.array], hidden: mx.array, matrices: Arrays, vectors: Arrays
) -> mx.array:
    """log sum exp of the logits of all `chunks`: float32 [S], not evaluated.

    Each chunk depends on the one before it, in the forward and in the backward pass, which computes its logits again;
    otherwise MLX would hold many chunks at once.

    Args:
        hidden: [S, D].
        matrices: differentiated matrices of the head, one row per token.
        vectors: differentiated vectors of the head, one entry per token.
    """

    def rows_of(matrices: Arrays, chunk: mx.array) -> Arrays:
        return {name: matrix[chunk] for name, matrix in matrices.items()}

    @mx.custom_function
    def normaliser(hidden: mx.array, matrices: Arrays, vectors: Arrays) -> mx.array:
        done = [hidden]
        for chunk in chunks:
            states, chunk = mx.depends([hidden, chunk], done[-1:])
            done.append(mx.logsumexp(logits(states, rows_of(matrices, chunk), vectors, chunk), axis=-1))
        return mx.logsumexp(mx.stack(done[1:]), axis=0)

    @normaliser.vjp
    def backward(primals: tuple, slope: mx.array, value: mx.array) -> tuple[mx.array, Arrays, Arrays]:
        hidden, matrices, vectors = primals
        of_hidden = mx.zeros_like(hidden)
        of_rows = {name: [] for name in matrices}
        of_vectors = {name: mx.zeros_like(vector) for name, vector in vectors.items()}
        for chunk in chunks:
            states, chunk = mx.depends([hidden, chunk], [of_hidden])
            rows = rows_of(matrices, chunk)
            # The derivative of log-sum-exp is the softmax.
            weights = mx.exp(logits(states, rows, vectors, chunk) - value[:, None]) * slope[:, None]

            def weighted(
                states: mx.array, rows: Arrays, vectors: Arrays, chunk: mx.array = chunk, weights: mx.array = weights
            ) -> mx.array:
                return (logits(states, rows, vectors, chunk) * weights).sum()

            gradient = mx.grad(weighted, argnums=(0, 1, 2))(states, rows, vectors)
            of_hidden = of_hidden + gradient[0]
            for name in matrices:
                of_rows[name].append(gradient[1][name])
            for name in vectors:
                of_vectors[name] = of_vectors[name] + gradient[2][name]
        return of_hidden, {name: mx.concatenate(pieces) for name, pieces in of_rows.items()}, of_vectors

    # MLX's stub of `custom_function` gives `object`.
    return cast(mx.array, normaliser(hidden, matrices, vectors))
