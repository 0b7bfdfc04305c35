"""Headers of safetensors files: what is damaged is refused before a tensor is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxzo.models.safetensors_file import safetensors_problem


def safetensors(path: Path, header: dict, size: int = 64) -> Path:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


WHOLE = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": WHOLE, "b": {**WHOLE, "data_offsets": [32, 64]}}, None),
        ({"a": WHOLE, "b": {**WHOLE, "data_offsets": [28, 60]}}, "its tensors a and b overlap"),
        ({"a": WHOLE, "b": {**WHOLE, "data_offsets": [36, 68]}}, "4 bytes are missing"),
        ({"a": {**WHOLE, "shape": [2, 5]}}, "is not a safetensors file"),
        ({"a": {**WHOLE, "shape": [-2, -4]}}, "is not a safetensors file"),
        ({"a": {**WHOLE, "data_offsets": [-32, 0]}}, "is not a safetensors file"),
        ({"a": {**WHOLE, "data_offsets": [0.0, 32.0]}}, "is not a safetensors file"),
        ({"a": [1]}, "is not a safetensors file"),
        (b'{"a": ' + b"[" * 100_000, "is not a safetensors file"),
        (b'{"a": {}, "a": {}}', "is not a safetensors file"),
    ],
)
def test_a_header_is_checked_before_a_tensor_is_read(header, says, tmp_path):
    found = safetensors_problem(safetensors(tmp_path / "model.safetensors", header))
    assert found is None if says is None else found is not None and says in found
