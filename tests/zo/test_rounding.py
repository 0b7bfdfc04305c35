"""Stochastic rounding is right on average, and never moves further than to a neighbour."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.zo import inplace
from mlxzo.zo.apply import Update, apply_updates
from mlxzo.zo.noise import random_words
from mlxzo.zo.perturb import Direction
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


class Place:
    """A slot that holds one weight."""

    def __init__(self, weight: mx.array):
        self.weight = weight

    def get(self) -> mx.array:
        return self.weight

    def set(self, weight: mx.array) -> None:
        self.weight = weight


def test_thousands_of_tiny_updates_move_a_bfloat16_weight_by_their_sum_only_when_rounded_stochastically():
    # A tenth of half the distance to the next bfloat16 above 1.
    update = 0.1 * 0.5 * 2.0**-7
    place = Place(mx.ones((1024,), mx.bfloat16))
    plain = place.get()
    along_ones = Ones(0, 0, 0, "sign", {"w": 1.0})
    for start in range(0, 2000, 100):
        steps = range(start, start + 100)
        for _ in steps:
            plain = (plain.astype(mx.float32) + update).astype(mx.bfloat16)
        mx.eval(plain)
        apply_updates({"w": place}, ["w"], [Update(step, [(along_ones, -update)]) for step in steps], seed=0)
    assert (plain == 1.0).all().item()
    moved = place.get().astype(mx.float32).mean().item() - 1.0
    # A step's rounding has a standard deviation of at most half a gap, which is 2^-7 below 2.
    assert abs(moved - 2000 * update) < 4 * 0.5 * 2.0**-7 * math.sqrt(2000 / 1024)


class Ones(Direction):
    """A direction that goes the same way everywhere."""

    def scaled(self, name, shape, factor, rows=None):
        return mx.full(shape, factor, mx.float32)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("shape", [(100, 64), (100,), (4, 25, 64)])
def test_an_update_in_chunks_of_rows_is_the_update_in_one(dtype, shape, monkeypatch):
    weight = mx.random.normal(shape, key=mx.random.key(0)).astype(dtype)
    terms = [(Direction(3, 7, i, "sign", {"w": 0.5}), 0.1 + i) for i in range(3)]
    places = []
    for chunk_bytes in (inplace.CHUNK_BYTES, 7 * 4 * 64):
        monkeypatch.setattr(inplace, "CHUNK_BYTES", chunk_bytes)
        places.append(Place(mx.array(weight)))
        apply_updates({"w": places[-1]}, ["w"], [Update(7, terms, decay=0.01)], seed=3)
    assert places[0].get().dtype == dtype
    assert places[0].get().shape == shape
    assert mx.array_equal(places[0].get(), places[1].get()).item()
    expected = (0.99 if len(shape) > 1 else 1.0) * weight.astype(mx.float32) - sum(
        c * z.scaled("w", shape, 1.0) for z, c in terms
    )
    assert mx.allclose(places[0].get().astype(mx.float32), expected, atol=1e-5 if dtype == mx.float32 else 0.04).item()
