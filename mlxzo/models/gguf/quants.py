"""Number formats of GGUF tensors: converted to float32, rounded to 16 bits, or kept as integers in MLX's layout.

Block layouts: ggml-common.h of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..safetensors_file import TensorPlan
from .reader import GgufTensor

GROUP_SIZE = 32  # of every ggml format that MLX can hold as it is
KEPT_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
PIECE_ELEMENTS = 1 << 22


def pieces_of(rows: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """Rows of a tensor in groups of about `PIECE_ELEMENTS` elements."""
    step = max(1, PIECE_ELEMENTS // columns)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def to_float32(rows: np.ndarray, kind: str) -> np.ndarray:
    """The float32 values of rows of bytes in a ggml number format, shape (rows, columns)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        return dequantize(np.ascontiguousarray(rows), GGMLQuantizationType[kind]).astype(np.float32, copy=False)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in safetensors' dtype F32, F16 or BF16 (as uint16 bit patterns), rounded to nearest even."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    if dtype == "BF16":  # the upper half of a float32, rounded to nearest, ties to even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values


def kept_plans(tensor: GgufTensor, rows: np.ndarray, name: str) -> list[TensorPlan]:
    """MLX's triplet for a tensor in Q4_0, Q4_1 or Q8_0: packed integers, scales and biases.

    A linear layer keeps the file's float16 scales, since its activations promote them to float32. Rows of an embedding
    are used directly, and float16 would round them: its scales are float32.
    """
    bits, columns = KEPT_BITS[tensor.kind], tensor.shape[-1]
    base, shape = name.removesuffix(".weight"), tensor.shape
    dtype = "F32" if base.endswith("embed_tokens") else "F16"
    groups = (*shape[:-1], columns // GROUP_SIZE)

    def plan(suffix: str, dtype: str, shape: tuple[int, ...], part: Callable[[np.ndarray], np.ndarray]) -> TensorPlan:
        return TensorPlan(f"{base}.{suffix}", dtype, shape, lambda: (part(piece) for piece in pieces_of(rows, columns)))

    return [
        plan("weight", "U32", (*shape[:-1], columns * bits // 32), lambda piece: _packed(piece, tensor.kind)),
        plan("scales", dtype, groups, lambda piece: cast(_scales_and_biases(piece, tensor.kind)[0], dtype)),
        plan("biases", dtype, groups, lambda piece: cast(_scales_and_biases(piece, tensor.kind)[1], dtype)),
    ]


def _blocks(rows: np.ndarray, kind: str) -> np.ndarray:
    header = 4 if kind == "Q4_1" else 2
    return np.ascontiguousarray(rows).reshape(len(rows), -1, header + GROUP_SIZE * KEPT_BITS[kind] // 8)


def _scales_and_biases(rows: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of each block as float32, shape (rows, groups); both fit float16 exactly for scales below 511."""
    blocks = _blocks(rows, kind)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    if kind == "Q4_1":
        return scales, np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0].astype(np.float32)
    return scales, scales * np.float32(-8 if kind == "Q4_0" else -128)


def _packed(rows: np.ndarray, kind: str) -> np.ndarray:
    """The integers of each row as MLX packs them: lowest bits first in little-endian uint32 words."""
    blocks = _blocks(rows, kind)
    if kind == "Q8_0":
        octets = blocks[..., 2:] ^ 0x80  # int8 q becomes uint8 q + 128
    else:  # ggml keeps elements 0-15 in the low and 16-31 in the high halves of 16 bytes
        stored = blocks[..., -16:]
        nibbles = np.concatenate([stored & 0x0F, stored >> 4], axis=-1)
        octets = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return np.ascontiguousarray(octets).view("<u4").reshape(len(rows), -1)
