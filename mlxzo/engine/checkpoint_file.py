"""Checkpoint files: the trainable parameters of a run as one safetensors file, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..core.errors import DoesNotFit, ModelError
from ..core.failures import raise_shortage
from ..core.files import explained, fsync_folder, need_free_space
from ..models.loading import described, fingerprint
from ..models.safetensors_file import (
    TensorPlan,
    safetensors_header,
    safetensors_problem,
    tensor_pieces,
    write_safetensors,
)
from ..models.slots import Slot

_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
# Large tensors are copied out of MLX in pieces of about this many elements.
_PIECE_ELEMENTS = 1 << 22


def save_state(path: Path, parameters: Mapping[str, mx.array], step: int = 0) -> int:
    """Writes parameters to `path` atomically and flushes them to the disk; returns the file's size in bytes.

    Args:
        step: number of steps they have taken.

    Raises:
        DoesNotFit: the disk is full; an earlier file of that name is still whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path, "the state", refused=DoesNotFit):
        if not path.parent.is_dir():
            # Not its parents: they are the run's, and missing where it was removed.
            path.parent.mkdir()
            fsync_folder(path.parent.parent)
        need_free_space(path.parent, sum(p.nbytes for p in parameters.values()) + 4096, f"the state {path.name}")
        try:
            write_safetensors(temporary, _plans(parameters), metadata=_metadata(fingerprint(parameters), step))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)
    return path.stat().st_size


def saved_step(path: Path) -> int | None:
    """The step of a saved state, by its header; None where there is no state, or a damaged one."""
    if not path.is_file() or safetensors_problem(path):
        return None
    try:
        _, metadata = _read(path)
    except ModelError:
        return None
    step = _step(metadata)
    return step if step >= 0 else None


def load_state(path: Path, slots: Mapping[str, Slot], names: tuple[str, ...]) -> int:
    """Loads a saved state into the parameters `names` of a model; returns the number of steps it has taken.

    The file is checked in small pieces before anything changes, and no parameter is in memory twice.

    Raises:
        ModelError: the file is missing or damaged, or is of another model or scope (every difference is listed).
    """
    if not path.is_file():
        raise ModelError(f"there is no saved state at {path}", "the run saved none: train it again")
    if problem := safetensors_problem(path):
        raise _damaged(path, problem)
    state, metadata = _read(path)
    problems = [f"{name} is missing" for name in names if name not in state]
    problems += [f"{name} is not a trained parameter of this run" for name in state if name not in names]
    for name in sorted(set(names) & set(state)):
        have, want = state[name], slots[name].get()
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            problems.append(f"{name} is {have.dtype} {have.shape}, and the model has {want.dtype} {want.shape}")
    if problems:
        raise ModelError(f"the saved state {path} is of another model or scope", "name the run's own model", problems)
    step = _step(metadata)
    # With the header, every byte of the file is checked.
    header = safetensors_header(_plans(state), _metadata(_fingerprint_of_file(path, state), step))
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise _damaged(path, "its content differs from what was saved")
    for name in names:
        # The old value is freed before the new one is read.
        slots[name].set(state.pop(name))
        mx.eval(slots[name].get())
    return step


def _read(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Tensors, which stay on the disk until they are evaluated, and metadata of a safetensors file."""
    try:
        found = mx.load(str(path), return_metadata=True)
    except RuntimeError as error:
        raise_shortage(error)
        raise _damaged(path, str(error)) from None
    # MLX's stub knows only that `load` returns a pair for some formats.
    if not isinstance(found, tuple) or not isinstance(found[0], dict):
        raise _damaged(path, "it holds no named tensors")
    tensors, metadata = found
    return tensors, metadata


def _fingerprint_of_file(path: Path, tensors: Mapping[str, mx.array]) -> str:
    """The `fingerprint` of the tensors of a file, which is read in pieces."""
    digest = hashlib.sha256()
    for name, pieces in tensor_pieces(path, sorted(tensors)):
        digest.update(described(name, tensors[name]))
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(f"the saved state {path} is damaged: {problem}", "train the run again")


def _plans(parameters: Mapping[str, mx.array]) -> list[TensorPlan]:
    return [TensorPlan(name, _DTYPES[p.dtype], p.shape, _pieces_of(p)) for name, p in parameters.items()]


def _metadata(sha256: str, step: int) -> dict[str, str]:
    """Metadata of the header: the step, and a checksum of it and of the fingerprint of the tensors."""
    check = hashlib.sha256(f"{step} {sha256}".encode()).hexdigest()
    return {"step": str(step), "sha256": check}


def _step(metadata: Mapping[str, str]) -> int:
    """The step in a header's metadata; -1 where another program wrote it, or it is damaged."""
    text = metadata.get("step", "")
    return int(text) if text.isdecimal() and len(text) < 20 else -1


def _pieces_of(parameter: mx.array):
    def pieces() -> Iterator[np.ndarray]:
        flat = parameter.reshape(-1)
        # numpy has no bfloat16: safetensors takes its bits as uint16.
        flat = flat.view(mx.uint16) if parameter.dtype == mx.bfloat16 else flat
        for start in range(0, flat.size, _PIECE_ELEMENTS):
            yield np.array(flat[start : start + _PIECE_ELEMENTS])

    return pieces
