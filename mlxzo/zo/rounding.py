"""Stochastic rounding of updated weights to bfloat16 and float16.

At a weight of 0.05 neighbouring bfloat16 values are 2.4e-4 apart, so an update of 1e-5 always rounds to zero. Rounding
up or down with the probability of the remainder is correct on average (Gupta et al., *Deep Learning with Limited
Numerical Precision*, ICML 2015).
"""

from __future__ import annotations

import mlx.core as mx

from .noise import random_words


def rounded(
    x: mx.array, dtype: mx.Dtype, name: str, shape: tuple[int, ...], rows: mx.array, seed: int, step: int
) -> mx.array:
    """Rows of an updated weight in its stored dtype: float32 unchanged, half precision rounded stochastically.

    Args:
        x: float32 [N, columns].
        name, shape: of the whole tensor. rows: int [N], the numbers of these rows.
        seed, step: determine the random bits, so that the result does not depend on the chunks.
    """
    if dtype == mx.float32:
        return x
    return stochastic_round(x, dtype, random_words(seed, step, 0, f"rounding|{name}", shape, rows))


def stochastic_round(x: mx.array, dtype: mx.Dtype, words: mx.array) -> mx.array:
    """Rounds float32 `x` to `dtype` so that the expected result is `x`.

    Args:
        x: float32.
        dtype: bfloat16, float16 or float32 (which returns `x`).
        words: uint32, shape of `x`: independent random words.
    """
    if dtype == mx.float32:
        return x
    near = x.astype(dtype)
    error = x - near.astype(mx.float32)
    # The neighbour of `near` on the side of x: one step in the integer view, away from or towards zero.
    bits = near.view(mx.uint16)
    away = (error > 0) == ((bits & 0x8000) == 0)
    magnitude = (bits & 0x7FFF).astype(mx.int32)
    step = mx.where(away, 1, -1)
    # Below zero magnitude lies the smallest number of the other sign.
    crosses = (magnitude == 0) & (step < 0)
    neighbour_magnitude = mx.where(crosses, 1, magnitude + step).astype(mx.uint16)
    sign = (bits & 0x8000) ^ mx.where(crosses, 0x8000, 0).astype(mx.uint16)
    neighbour = (sign | neighbour_magnitude).view(dtype)
    gap = mx.abs(neighbour.astype(mx.float32) - near.astype(mx.float32))
    uniform = (words >> 8).astype(mx.float32) * 2.0**-24
    return mx.where((error != 0) & (uniform * gap < mx.abs(error)), neighbour, near)
