"""Random directions, noise version 1: a counter-based generator that generates any row by itself.

Definition (noise v1)
    key      k0, k1: the first 8 bytes, as two little-endian uint32, of BLAKE2b-64 over the ASCII text
             ``mlxzo-noise-1|<seed>|<step>|<direction index>|<tensor name>``
    words    a tensor of shape (..., C) is seen as R rows of C columns (a vector is one row). Row r has W words;
             with H = ceil(W / 2), Threefry-2x32-20 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*,
             SC 2011) under the key (k0 + r mod 2^32, k1) of the counter (j, H + j) gives the words j and H + j.
    sign     W = ceil(C / 32); z[r, c] is -1 if bit 31 - (c mod 32) of word c // 32 is set, else +1.
    gaussian W = 2 * C; Box-Muller on the words c and C + c of the row (see `_gaussian`).

Signs come from integer operations only, so they are bit-identical on every backend and for every chunking of the rows.
Gaussian values pass through log and cos, and differ between backends by rounding.

A row of words equals the result of `mx.random.split` under the row's key, so MLX's own kernel generates it, some ten
times faster than Threefry in array operations. If another release of MLX computes it differently, the array operations
are used (`_native_agrees`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from functools import lru_cache

import mlx.core as mx

NOISE_VERSION = 1

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_SIGN_BIT = 0x80000000


def direction_key(seed: int, step: int, index: int, name: str) -> mx.array:
    """The Threefry key of one tensor's part of one direction: uint32 [2]."""
    text = f"mlxzo-noise-{NOISE_VERSION}|{seed}|{step}|{index}|{name}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return mx.array(struct.unpack("<2I", digest), mx.uint32)


def threefry2x32(k0: mx.array, k1: mx.array, c0: mx.array, c1: mx.array) -> tuple[mx.array, mx.array]:
    """Threefry-2x32 with 20 rounds: two uint32 words for each key (k0, k1) and counter (c0, c1), which broadcast."""
    schedule = (k0, k1, k0 ^ k1 ^ _uint32(_PARITY))
    x0, x1 = c0 + k0, c1 + k1
    for i in range(20):
        x0 = x0 + x1
        rotation = _ROTATIONS[i % 8]
        x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        if i % 4 == 3:
            injection = i // 4 + 1
            x0 = x0 + schedule[injection % 3]
            x1 = x1 + (schedule[(injection + 1) % 3] + _uint32(injection))
    return x0, x1


def scaled_direction(
    key: mx.array, shape: tuple[int, ...], scale: float, kind: str = "sign", rows: mx.array | None = None
) -> mx.array:
    """scale * z for one tensor, float32.

    Args:
        key: from `direction_key`.
        shape: shape of the tensor; its last axis is the columns.
        scale: multiplier, of either sign.
        kind: `sign` or `gaussian`.
        rows: uint32 [N] row numbers; the result is then [N, C] instead of `shape`.
    """
    columns = shape[-1] if shape else 1
    if rows is None:
        rows = mx.arange(math.prod(shape[:-1]), dtype=mx.uint32)
        result_shape = shape
    else:
        rows = rows.astype(mx.uint32)
        result_shape = (rows.size, columns)
    values = _signs(key, rows, columns, scale) if kind == "sign" else scale * _gaussian(key, rows, columns)
    return values.reshape(result_shape)


def random_words(
    seed: int, step: int, index: int, name: str, shape: tuple[int, ...], rows: mx.array | None = None
) -> mx.array:
    """Independent uint32 words in the shape of a tensor, or [N, C] for its rows numbered `rows` [N]; for decisions
    other than the direction, such as rounding."""
    columns = shape[-1] if shape else 1
    key = direction_key(seed, step, index, name)
    if rows is None:
        return _words(key, mx.arange(math.prod(shape[:-1]), dtype=mx.uint32), columns).reshape(shape)
    return _words(key, rows.astype(mx.uint32), columns)


def _signs(key: mx.array, rows: mx.array, columns: int, scale: float) -> mx.array:
    words = _words(key, rows, -(-columns // 32))
    bits = (words[:, :, None] << mx.arange(32, dtype=mx.uint32)) & _uint32(_SIGN_BIT)
    # The random bit flips the sign bit of the scale: no arithmetic on floats, hence the same bits everywhere.
    values = (bits ^ mx.array(scale, mx.float32).view(mx.uint32)).view(mx.float32).reshape(rows.size, -1)
    return values if values.shape[1] == columns else values[:, :columns]


def _gaussian(key: mx.array, rows: mx.array, columns: int) -> mx.array:
    words = _words(key, rows, 2 * columns)
    # 24 bits each: u in (0, 1] keeps the logarithm finite, the angle is uniform on [0, 2 pi).
    u = ((words[:, :columns] >> 8).astype(mx.float32) + 1.0) * 2.0**-24
    angle = (words[:, columns:] >> 8).astype(mx.float32) * (2.0 * math.pi * 2.0**-24)
    return mx.sqrt(-2.0 * mx.log(u)) * mx.cos(angle)


def _words(key: mx.array, rows: mx.array, count: int) -> mx.array:
    """uint32 [rows, count]: the words of each row."""
    half = -(-count // 2)
    keys = mx.stack([key[0] + rows, mx.broadcast_to(key[1], rows.shape)], axis=-1)
    words = _native_words(keys, half) if _native_agrees() else _portable_words(keys, half)
    return words if 2 * half == count else words[:, :count]


def _native_words(keys: mx.array, half: int) -> mx.array:
    """uint32 [R, 2 * half] for keys [R, 2], by MLX's generator."""
    return mx.vmap(lambda key: mx.random.split(key, half))(keys).reshape(-1, 2 * half)


def _portable_words(keys: mx.array, half: int) -> mx.array:
    """The same words by array operations."""
    counter = mx.broadcast_to(mx.arange(half, dtype=mx.uint32), (keys.shape[0], half))
    first, second = threefry2x32(keys[:, :1], keys[:, 1:], counter, counter + _uint32(half))
    return mx.concatenate([first, second], axis=1)


@lru_cache(maxsize=1)
def _native_agrees() -> bool:
    """True if this release of MLX computes the definition above; tried once a process on rows of odd sizes."""
    keys = mx.array([[0, 0], [1, 2], [0xFFFFFFFF, 0x9E3779B9]], mx.uint32)
    try:
        return all(
            mx.array_equal(_native_words(keys, half), _portable_words(keys, half)).item() for half in (1, 2, 9, 32)
        )
    except (TypeError, ValueError, RuntimeError):
        return False


def _uint32(value: int) -> mx.array:
    return mx.array(value, mx.uint32)
