"""The memory that Python, MLX and Metal take by themselves: a constant, and on a Mac what its runs have shown.

The constant is from Linux, where there is no Metal: its device, compiled kernels and command buffers add to it. So a
run on a Mac ends by measuring them, and later predictions there count what it found.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

from ..core.files import mlxzo_home, write_atomic
from ..core.meter import footprint_bytes, mlx_memory
from ..core.parsing import CONTENT_ERRORS, read_json
from .coefficients import coefficient

_FILE = "metal_runtime.json"


def runtime_bytes() -> int:
    """Bytes of the runtime in a prediction: the constant, or on a Mac what `record_runtime` kept, if that is more."""
    return max(int(coefficient("runtime_bytes")), _kept() or 0)


def record_runtime(vocabulary: int) -> None:
    """Keeps what this process takes beside MLX's arrays and a tokenizer of so many words, on a Mac; elsewhere nothing.

    The least that any run has shown counts: a process may hold more than its runtime, and never less. Imports MLX.
    """
    if sys.platform != "darwin":
        return
    memory = mlx_memory()
    arrays = memory.active_bytes + memory.cache_bytes
    found = footprint_bytes() - arrays - int(coefficient("tokenizer_bytes_a_word") * vocabulary)
    if found > 0 and found < (_kept() or found + 1):
        # The run is done: that later predictions know less of this machine must not fail it.
        with contextlib.suppress(OSError):
            _path().parent.mkdir(parents=True, exist_ok=True)
            write_atomic(_path(), json.dumps({"mlx": version("mlx"), "runtime_bytes": found}) + "\n")


def _kept() -> int | None:
    """The bytes that a run on this machine with this release of MLX has left; None without one."""
    if sys.platform != "darwin":
        return None
    try:
        kept = read_json(_path())
        return int(kept["runtime_bytes"]) if kept["mlx"] == version("mlx") else None
    except (OSError, *CONTENT_ERRORS):
        return None


def _path() -> Path:
    return mlxzo_home() / _FILE
