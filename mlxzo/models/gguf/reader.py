"""A reader of GGUF files: metadata and bytes of the tensors, with every length checked before it is used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the `gguf` package takes half a minute
for a vocabulary of 262,144, and mlx's own ends the process on a damaged file.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ModelError
from ...core.files import check_regular
from ...core.formatting import brief, shown

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SUPPORTED_VERSIONS = (2, 3)
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as stored.

    Attributes:
        shape: in numpy order (rows first; GGUF writes it reversed).
        kind: ggml's name of the number format, such as F32, Q4_1 or Q4_K.
        rows: uint8 view (number of rows, bytes a row) of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    rows: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's metadata (scalars, strings, lists, numpy arrays) and tensors, by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "?"))

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata of this architecture: `get("block_count")` reads `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


class _Damaged(Exception):
    """The bytes do not follow the format."""


class _Cursor:
    """Reads values one after the other; raises `_Damaged` at the end of the data."""

    def __init__(self, data: np.ndarray):
        self.data = data.data
        self.position = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise _Damaged("it ends in the middle of its header")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError as error:
            raise _Damaged("a text in its header is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"its header holds a value of unknown kind {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            code = _SCALARS[item]
            return np.frombuffer(self.take(count * struct.calcsize(code)), dtype=np.dtype("<" + code)).copy()
        if item == _ARRAY or count * 8 > len(self.data):  # a text takes 8 bytes at least
            raise _Damaged("a list in its header is longer than the file")
        return [self.value(item) for _ in range(count)]


def gguf_parts(path: Path) -> list[Path]:
    """The files that a model is split into by `llama-gguf-split`, the first one first; any other file by itself."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    return [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file, or of all parts of a split one, and maps the tensors into memory.

    Args:
        path: the file; of a split one any part.

    Raises:
        ModelError: a file cannot be read, is no GGUF, is cut short or damaged, or has a number format that the `gguf`
            package does not know; or a part is missing.
    """
    found = _read(Path(path))
    count = found.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return found
    paths = gguf_parts(Path(path))
    missing = [part.name for part in paths if not part.exists()]
    if len(paths) != count or missing:
        lacking = f": {', '.join(missing[:4])} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""
        raise ModelError(
            f"{path} is one of {count} parts of a model{lacking}",
            "put all parts in one folder, under the names that they were published with, or join them with "
            "`llama-gguf-split --merge`",
        )
    # The first part has the metadata of the model, the others those of the split alone.
    parts = [_read(part) for part in paths]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != parts[0].metadata.get("split.tensors.count", len(tensors)):
        raise ModelError(f"the parts of {paths[0]} do not belong together", "download all of them again")
    return GgufFile(paths[0], parts[0].metadata, tensors)


def _read(path: Path) -> GgufFile:
    fix = "download the file again"
    try:
        check_regular(path)
        data = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"{path} cannot be read: {error}", fix) from error
    if bytes(data[:4]) != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file", "name a file in GGUF format, or a folder with safetensors")
    try:
        return _parse(path, data)
    except _Damaged as error:
        raise ModelError(f"{path} is damaged or incomplete: {brief(error)}", fix) from error


def _parse(path: Path, data: np.ndarray) -> GgufFile:
    cursor = _Cursor(data)
    cursor.take(4)
    version = cursor.number("I")
    if version not in _SUPPORTED_VERSIONS:
        raise _Damaged(f"its version, {version}, is not 2 or 3")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))

    described = []
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("I")
        if dimensions > 4:
            raise _Damaged(f"the tensor {name} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        described.append((name, shape, cursor.number("I"), cursor.number("Q")))

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"its alignment is {shown(alignment)}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: _tensor(path, data, name, shape, kind, start + offset) for name, shape, kind, offset in described}
    return GgufFile(path, metadata, tensors)


def _tensor(path: Path, data: np.ndarray, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        number_format = GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelError(
            f"{path}: the tensor {name} has a number format mlxzo does not know (ggml type {kind})",
            "use a file quantised to Q4_K_M, Q5_K_M, Q6_K or Q8_0, or one in F16 or BF16",
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[number_format]
    columns = shape[-1] if shape else 1
    if columns == 0 or columns % block:
        raise _Damaged(f"the tensor {name} has rows of {columns} numbers, not a multiple of {block}")
    row_bytes = columns // block * block_bytes
    rows = prod(shape[:-1])
    end = start + rows * row_bytes
    if end > len(data):
        raise _Damaged(f"the tensor {name} ends {end - len(data)} bytes after the end of the file")
    return GgufTensor(name, shape, number_format.name, data[start:end].reshape(rows, row_bytes))
