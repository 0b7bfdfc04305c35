"""Random directions, noise version 1: a counter-based generator that any row can be asked of on its own.

Definition (noise v1)
    key      the first 8 bytes, as two little-endian uint32, of BLAKE2b-64 over the ASCII text
             ``mlxzo-noise-1|<seed>|<step>|<direction index>|<tensor name>``
    words    a tensor of shape (..., C) is seen as R rows of C columns (a vector is one row). Row r has W words;
             with H = ceil(W / 2), Threefry-2x32-20 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*,
             SC 2011) of the counter (j, r) gives the words j and H + j of that row.
    sign     W = ceil(C / 32); z[r, c] is -1 if bit 31 - (c mod 32) of word c // 32 is set, else +1.
    gaussian W = 2 * C; Box-Muller on the words c and C + c of the row (see `_gaussian`).

Signs come from integer operations only, so they are the same on every backend, for every chunking of the rows.
Gaussian values pass through log and cos and agree between backends only to rounding.
"""

from __future__ import annotations

import hashlib
import math
import struct

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


def threefry2x32(key: mx.array, c0: mx.array, c1: mx.array) -> tuple[mx.array, mx.array]:
    """Threefry-2x32 with 20 rounds: two uint32 words for each counter pair (c0, c1), which broadcast."""
    k0, k1 = key[0], key[1]
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


def random_words(seed: int, step: int, index: int, name: str, shape: tuple[int, ...]) -> mx.array:
    """Independent uint32 words in the shape of a tensor, for decisions beside the direction such as rounding."""
    columns = shape[-1] if shape else 1
    rows = mx.arange(math.prod(shape[:-1]), dtype=mx.uint32)
    return _words(direction_key(seed, step, index, name), rows, columns).reshape(shape)


def _signs(key: mx.array, rows: mx.array, columns: int, scale: float) -> mx.array:
    words = _words(key, rows, -(-columns // 32))
    bits = (words[:, :, None] << mx.arange(32, dtype=mx.uint32)) & _uint32(_SIGN_BIT)
    # The random bit flips the sign bit of the scale: no arithmetic on floats, hence the same bits everywhere.
    values = (bits ^ mx.array(scale, mx.float32).view(mx.uint32)).view(mx.float32)
    return values.reshape(rows.size, -1)[:, :columns]


def _gaussian(key: mx.array, rows: mx.array, columns: int) -> mx.array:
    words = _words(key, rows, 2 * columns)
    # 24 bits each: u in (0, 1] keeps the logarithm finite, the angle is uniform on [0, 2 pi).
    u = ((words[:, :columns] >> 8).astype(mx.float32) + 1.0) * 2.0**-24
    angle = (words[:, columns:] >> 8).astype(mx.float32) * (2.0 * math.pi * 2.0**-24)
    return mx.sqrt(-2.0 * mx.log(u)) * mx.cos(angle)


def _words(key: mx.array, rows: mx.array, count: int) -> mx.array:
    """uint32 [rows, count]: the words of each row."""
    half = -(-count // 2)
    c0 = mx.broadcast_to(mx.arange(half, dtype=mx.uint32)[None, :], (rows.size, half))
    c1 = mx.broadcast_to(rows.reshape(-1, 1), (rows.size, half))
    first, second = threefry2x32(key, c0, c1)
    return mx.concatenate([first, second], axis=1)[:, :count]


def _uint32(value: int) -> mx.array:
    return mx.array(value, mx.uint32)
