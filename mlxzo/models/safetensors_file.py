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
from typing import Any, BinaryIO

import numpy as np

from ..core.files import open_regular, sync_to_disk
from ..core.formatting import brief
from ..core.parsing import CONTENT_ERRORS, ContentError, reason_of

# A file is read in pieces of this size.
_PIECE_BYTES = 1 << 22

# Parts of a multimodal model, and drafts of further tokens, which mlx-lm leaves out of the language model.
_NOT_TEXT = re.compile(
    r"(^|\.)(vision_\w+|visual|audio_tower|embed_vision|embed_audio|multi_modal_projector|mtp)(\.|$)"
)

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
# Of every dtype with whole bytes; others are left to MLX.
_DTYPES = {8: "F64 I64 U64 C64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "BOOL I8 U8 F8_E4M3 F8_E5M2 F8_E8M0"}
_DTYPE_BYTES = {name: size for size, names in _DTYPES.items() for name in names.split()}
# That of the `safetensors` package: a file with a larger one is none, and must not be read into memory.
_LARGEST_HEADER = 100_000_000


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


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a file that is whole.

    Attributes:
        start: position of the first tensor.
        spans: of each tensor, first and last byte behind `start`.
        metadata: the texts that the writer added.
    """

    start: int
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Reads the header of a file and checks it: MLX reads weights lazily and unchecked, so a file that was cut short
    would fail much later or not at all, and tensors that overlap would share their values.

    Raises:
        OSError: the file cannot be read. ContentError: it is cut short, or no safetensors file.
    """
    not_one = ContentError("is not a safetensors file")
    with open_regular(path) as file:
        size, beginning = os.fstat(file.fileno()).st_size, file.read(8)
        start = 8 + int.from_bytes(beginning, "little")
        if len(beginning) < 8:
            raise ContentError("is cut short")
        if start > 8 + _LARGEST_HEADER:
            raise not_one
        if start > size:
            raise ContentError("is cut short")
        try:
            header = json.loads(file.read(start - 8), object_pairs_hook=_without_repeats)
            metadata = header.pop("__metadata__", {})
            spans = {str(name): _span(item) for name, item in header.items()}
        except CONTENT_ERRORS:
            raise not_one from None
    last, before = 0, ""
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < last:
            raise ContentError(f"is damaged: its tensors {brief(before)} and {brief(name)} overlap")
        last, before = end, name
    if (missing := start + last - size) > 0:
        raise ContentError(f"is cut short: {missing} bytes are missing")
    return SafetensorsHeader(start, spans, metadata if isinstance(metadata, dict) else {})


def _span(item: dict[str, Any]) -> tuple[int, int]:
    """First and last byte of a tensor, by its entry in the header.

    Raises:
        ValueError, TypeError, KeyError: the entry makes no sense.
    """
    (begin, end), shape = item["data_offsets"], item["shape"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError
    size = _DTYPE_BYTES.get(item["dtype"])
    if end < begin or (size is not None and end - begin != prod(shape) * size):
        raise ValueError
    return begin, end


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def safetensors_problem(path: Path) -> str | None:
    """One sentence on a file that is cut short, damaged or no safetensors file; None if its header is sound."""
    try:
        read_header(path)
    except (OSError, ContentError) as error:
        return f"{path.name} {reason_of(error)}"
    return None


def tensor_pieces(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The bytes of tensors of a whole file: each name with its pieces, to be consumed before the next name.

    Raises:
        OSError: the file cannot be read. ContentError: it is damaged.
    """
    header = read_header(path)
    with path.open("rb") as file:
        for name in names:
            begin, end = header.spans[name]
            file.seek(header.start + begin)
            yield name, _pieces(file, end - begin)


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a file that a language model loads: not of other parts of a multimodal model.

    Raises:
        OSError: the file cannot be read. ContentError: it is no safetensors file.
    """
    spans = read_header(path).spans.items()
    return sum(end - begin for name, (begin, end) in spans if not _NOT_TEXT.search(name))


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
        sync_to_disk(file.fileno())
