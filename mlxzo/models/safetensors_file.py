"""Safetensors files: writing one tensor by tensor, in the memory of one piece, and checking that one is whole.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

# A file is read in pieces of this size.
_PIECE_BYTES = 1 << 22

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written: `pieces()` yields its elements in order, as arrays of the dtype's width.

    dtype is safetensors' own name: F32, F16, BF16 (pieces are uint16 bit patterns) or U32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with the length of a safetensors file, in one sentence, or None; reads its header only.

    MLX reads weights lazily, so a file that was cut short would otherwise fail, or worse, much later.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > size - 8:
                return f"{path.name} is cut short"
            header = json.loads(file.read(header_bytes))
        end = max((item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{path.name} is not a safetensors file"
    missing = 8 + header_bytes + end - size
    return f"{path.name} is cut short: {missing} bytes are missing" if missing > 0 else None


def tensor_pieces(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The bytes of tensors of a file that is whole: each name with its pieces, to be read before the next is asked for.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            yield name, _pieces(file, end - begin)


def _pieces(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        yield piece
        left -= len(piece)


def safetensors_header(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """What a file of these tensors begins with: the same bytes whenever it is written."""
    header: dict[str, dict] = {"__metadata__": {"format": "mlx", **metadata}}
    offset = 0
    for plan in sorted(plans, key=lambda plan: plan.name):
        header[plan.name] = {
            "dtype": plan.dtype,
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.nbytes],
        }
        offset += plan.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def write_safetensors(
    path: Path,
    plans: Iterable[TensorPlan],
    on_bytes: Callable[[int], None] = lambda size: None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the planned tensors to `path` and flush them to the disk.

    Args:
        on_bytes: told each piece's size.
        metadata: kept in the header beside the format's own entry.

    Raises:
        OSError: the disk is full, or the file cannot be written.
        ValueError: the pieces of a tensor do not add up to its shape.
    """
    plans = sorted(plans, key=lambda plan: plan.name)
    with path.open("wb") as file:
        file.write(safetensors_header(plans, metadata or {}))
        for plan in plans:
            written = 0
            for piece in plan.pieces():
                file.write(np.ascontiguousarray(piece).data.cast("B"))
                written += piece.nbytes
                on_bytes(piece.nbytes)
            if written != plan.nbytes:
                raise ValueError(f"{plan.name}: {written} bytes written, {plan.nbytes} expected")
        file.flush()
        os.fsync(file.fileno())
