"""Safetensors files, read and written in pieces: no tensor is held in memory whole.

The `safetensors` package does not serve here: it writes whole tensors only, its NumPy reader knows no bfloat16 and
gives no raw bytes, and it refuses a file that was cut short without the number of missing bytes.

Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

# A file is read in pieces of this size.
_PIECE_BYTES = 1 << 22

# Parts of a multimodal model, and drafts of further tokens, which mlx-lm leaves out of the language model.
_NOT_TEXT = re.compile(
    r"(^|\.)(vision_\w+|visual|audio_tower|embed_vision|embed_audio|multi_modal_projector|mtp)(\.|$)"
)

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written.

    Attributes:
        dtype: F32, F16, BF16 or U32, as safetensors names them.
        pieces: yields the elements in order, as arrays of that dtype (BF16: uint16 bit patterns).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def safetensors_problem(path: Path) -> str | None:
    """One sentence on a file that is cut short or no safetensors file; None if it is whole. Reads the header only.

    MLX reads weights lazily, so a file that was cut short would otherwise fail much later, or not at all.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = _data_start(file)
            if start > size:
                return f"{path.name} is cut short"
            header = json.loads(file.read(start - 8))
        end = max((item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{path.name} is not a safetensors file"
    missing = start + end - size
    return f"{path.name} is cut short: {missing} bytes are missing" if missing > 0 else None


def tensor_pieces(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The bytes of tensors of a whole file: each name with its pieces, to be consumed before the next name.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = _data_start(file)
        header = json.loads(file.read(start - 8))
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            yield name, _pieces(file, end - begin)


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a file that a language model loads: not of other parts of a multimodal model.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(_data_start(file) - 8))
    spans = (
        item["data_offsets"] for name, item in header.items() if name != "__metadata__" and not _NOT_TEXT.search(name)
    )
    return sum(end - begin for begin, end in spans)


def _data_start(file: BinaryIO) -> int:
    """Position of the first tensor: 8 bytes hold the length of the header that follows them."""
    return 8 + int.from_bytes(file.read(8), "little")


def _pieces(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left and (piece := file.read(min(left, _PIECE_BYTES))):
        yield piece
        left -= len(piece)


def safetensors_header(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of these tensors; deterministic."""
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
        on_bytes: called with the size of each piece.
        metadata: further entries of the header's metadata.

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
