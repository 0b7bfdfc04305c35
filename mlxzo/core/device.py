"""The kind of device that MLX computes on, which decides shapes, compute dtype and the prediction of memory."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

# For tests: `gpu` takes the branches of a GPU on a CPU, all of them together and in child processes too.
COMPUTE_AS = "MLXZO_COMPUTE_AS"


def computes_as_cpu() -> bool:
    """True if work is laid out for a CPU, False for a GPU. Imports no MLX; where it is imported, it is asked."""
    if COMPUTE_AS in os.environ:
        return os.environ[COMPUTE_AS] != "gpu"
    if (mx := sys.modules.get("mlx.core")) is not None:
        return mx.default_device().type == mx.DeviceType.cpu
    return _is_cpu_installed()


def computes_in_half_precision(dtype: str) -> bool:
    """True if weights at rest in `dtype`, as the option names it, are expected to compute in half precision.

    A CPU computes in float32, a GPU in the weights' own dtype; `auto` is that of the model's files, mostly bfloat16.
    """
    return dtype != "float32" and not computes_as_cpu()


@functools.cache
def _is_cpu_installed() -> bool:
    """True if the MLX of this machine computes on its CPU: not on Apple Silicon, nor where the CUDA backend is
    installed."""
    if sys.platform == "darwin":
        return False
    # The folders' names say it; importlib.metadata would read a file of every package that is installed.
    return not any(found for folder in sys.path for found in Path(folder).glob("mlx_cuda*.dist-info"))
