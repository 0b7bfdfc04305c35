"""Directions: the generator is Threefry as published, its signs pass statistical tests, and rows stand on their own."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.zo import noise
from mlxzo.zo.noise import direction_key, random_words, scaled_direction, threefry2x32

SIGMA = 4.0


def numpy_signs(seed: int, step: int, index: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise v1 signs written again from its definition, in numpy's 64-bit integers."""
    import hashlib

    digest = hashlib.blake2b(f"mlxzo-noise-1|{seed}|{step}|{index}|{name}".encode(), digest_size=8).digest()
    k0, k1 = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    columns, rows = shape[-1], math.prod(shape[:-1])
    words = -(-columns // 32)
    half = -(-words // 2)
    mask = np.uint64(0xFFFFFFFF)
    k0 = (np.uint64(k0) + np.arange(rows, dtype=np.uint64)[:, None]) & mask
    ks = [k0, np.uint64(k1), k0 ^ np.uint64(k1) ^ np.uint64(0x1BD11BDA)]
    x0 = np.broadcast_to(np.arange(half, dtype=np.uint64), (rows, half))
    x0, x1 = (x0 + ks[0]) & mask, (x0 + np.uint64(half) + ks[1]) & mask
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    for i in range(20):
        x0 = (x0 + x1) & mask
        r = np.uint64(rotations[i % 8])
        x1 = (((x1 << r) | (x1 >> (np.uint64(32) - r))) & mask) ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0 = (x0 + ks[j % 3]) & mask
            x1 = (x1 + ks[(j + 1) % 3] + np.uint64(j)) & mask
    both = np.concatenate([x0, x1], axis=1)[:, :words]
    bits = (both[:, :, None] >> (np.uint64(31) - np.arange(32, dtype=np.uint64))) & np.uint64(1)
    return np.where(bits.reshape(rows, -1)[:, :columns] == 1, -1.0, 1.0).astype(np.float32).reshape(shape)


def signs(shape, *, seed=0, step=0, index=0, name="w") -> np.ndarray:
    return np.array(scaled_direction(direction_key(seed, step, index, name), shape, 1.0))


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # Known answers of the Random123 distribution (Salmon et al. 2011), threefry2x32 with 20 rounds.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_answers(key, counter, expected):
    x0, x1 = threefry2x32(*(mx.array(word, mx.uint32) for word in (*key, *counter)))
    assert (x0.item(), x1.item()) == expected


@pytest.mark.parametrize("shape", [(5,), (31,), (7, 64), (3, 33), (2, 3, 40), (1000, 1)])
def test_signs_are_what_the_definition_says(shape):
    assert np.array_equal(signs(shape, seed=3, step=9, index=1, name="a.b"), numpy_signs(3, 9, 1, "a.b", shape))


def test_array_operations_take_over_where_mlx_has_another_generator(monkeypatch):
    assert noise._native_agrees()
    for kind in ("sign", "gaussian"):
        native = scaled_direction(direction_key(3, 9, 1, "a.b"), (7, 70), 0.5, kind)
        monkeypatch.setattr(noise, "_native_agrees", lambda: False)
        portable = scaled_direction(direction_key(3, 9, 1, "a.b"), (7, 70), 0.5, kind)
        monkeypatch.undo()
        assert mx.array_equal(native, portable).item()

    def other(keys, half):
        return noise._portable_words(keys + 1, half)

    monkeypatch.setattr(noise, "_native_words", other)
    noise._native_agrees.cache_clear()
    assert not noise._native_agrees()
    monkeypatch.undo()
    noise._native_agrees.cache_clear()


def test_a_row_asked_for_alone_is_the_row_of_the_whole():
    for kind in ("sign", "gaussian"):
        key = direction_key(1, 2, 0, "embedding")
        whole = np.array(scaled_direction(key, (100, 77), 0.5, kind))
        rows = mx.array([99, 0, 41, 41])
        assert np.array_equal(np.array(scaled_direction(key, (100, 77), 0.5, kind, rows)), whole[[99, 0, 41, 41]])


def test_the_scale_keeps_its_bits_and_its_sign():
    for scale in (1e-3, -1e-3, 0.7):
        values = np.array(scaled_direction(direction_key(0, 0, 0, "w"), (64, 64), scale))
        assert set(np.unique(values)) == {np.float32(scale), np.float32(-scale)}
    assert np.array_equal(
        signs((9, 9)) * np.float32(-0.25), np.array(scaled_direction(direction_key(0, 0, 0, "w"), (9, 9), -0.25))
    )


def test_signs_have_no_bias_over_millions():
    count = 4096 * 2048
    assert abs(float(signs((4096, 2048)).sum(dtype=np.float64))) < SIGMA * math.sqrt(count)


def test_no_row_column_or_neighbour_is_correlated():
    z = signs((2048, 2048)).astype(np.float32)
    n = z.size
    # Sums of rows and columns: the largest of 2048 normal values stays below 5 sigma (chance 1e-3).
    assert max(np.abs(z.sum(0)).max(), np.abs(z.sum(1)).max()) < 5.0 * math.sqrt(2048)
    for shift in (1, 2, 31, 32, 33, 64, 1024):
        for axis in (0, 1):
            product = float((z * np.roll(z, shift, axis)).sum(dtype=np.float64))
            assert abs(product) < SIGMA * math.sqrt(n), (shift, axis)
    # Correlation of every row with every other, and of every column: mean square 1 in units of the noise.
    for matrix in (z, z.T):
        gram = matrix @ matrix.T / math.sqrt(2048)
        off = gram[~np.eye(2048, dtype=bool)]
        assert abs(float((off**2).mean()) - 1.0) < SIGMA * math.sqrt(4.0 / off.size)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"index": 1}, {"name": "v"}])
def test_seeds_steps_directions_and_tensors_are_independent(other):
    a, b = signs((1024, 2048)), signs((1024, 2048), **other)
    assert abs(float((a * b).sum(dtype=np.float64))) < SIGMA * math.sqrt(a.size)


def test_bytes_of_the_words_are_uniform():
    words = np.array(random_words(0, 0, 0, "w", (1024, 1024)))
    counts = np.bincount(words.reshape(-1).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 255) < SIGMA * math.sqrt(2 * 255)


def test_gaussian_directions_have_the_moments_of_a_normal():
    z = np.array(scaled_direction(direction_key(0, 0, 0, "w"), (2048, 1024), 1.0, "gaussian")).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < SIGMA / math.sqrt(n)
    assert abs((z**2).mean() - 1) < SIGMA * math.sqrt(2 / n)
    assert abs((z**3).mean()) < SIGMA * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < SIGMA * math.sqrt(96 / n)
    assert abs((z * np.roll(z, 1, 1)).mean()) < SIGMA / math.sqrt(n)
