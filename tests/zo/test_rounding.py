"""Stochastic rounding is right on average, and never moves further than to a neighbour."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.zo.noise import random_words
from mlxzo.zo.rounding import stochastic_round


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("value", [0.0500123, -0.0500123, 1.00003, 3e-6, -7.1e-8, 100.01])
def test_the_mean_of_many_roundings_is_the_value(dtype, value):
    count = 1 << 18
    x = mx.full((512, count // 512), value, mx.float32)
    rounded = np.array(stochastic_round(x, dtype, random_words(0, 0, 0, "r", x.shape)).astype(mx.float32), np.float64)
    levels = np.unique(rounded)
    assert len(levels) <= 2
    exact = float(np.float32(value))
    assert levels[0] <= exact <= levels[-1]
    gap = levels[-1] - levels[0]
    assert abs(rounded.mean() - exact) <= 4 * gap / math.sqrt(count) + 1e-12


def test_values_that_the_dtype_has_stay_as_they_are():
    x = mx.array(np.linspace(-4, 4, 1024, dtype=np.float32)).astype(mx.bfloat16).astype(mx.float32)
    for seed in range(3):
        rounded = stochastic_round(x, mx.bfloat16, random_words(seed, 0, 0, "r", x.shape))
        assert mx.array_equal(rounded.astype(mx.float32), x).item()


def test_small_updates_move_a_bfloat16_weight_only_when_rounded_stochastically():
    # A step of 1e-5 at 0.05, where bfloat16 values are 2.4e-4 apart.
    plain = mx.full((4096,), 0.05, mx.bfloat16)
    stochastic, start = plain, plain.astype(mx.float32)
    for step in range(200):
        plain = (plain.astype(mx.float32) - 1e-5).astype(mx.bfloat16)
        words = random_words(0, step, 0, "r", stochastic.shape)
        stochastic = stochastic_round(stochastic.astype(mx.float32) - 1e-5, mx.bfloat16, words)
    assert mx.array_equal(plain.astype(mx.float32), start).item()
    moved = (stochastic.astype(mx.float32) - start).mean().item()
    # Each step adds at most a gap's worth of noise: 200 steps and 4096 weights make this bound 4 sigma.
    assert abs(moved + 200 * 1e-5) < 4 * 2.44e-4 * math.sqrt(200 / 4096)
