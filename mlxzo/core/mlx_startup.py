"""Everything that has to be in place before MLX is imported: variables that it reads once, and a fast BLAS."""

from __future__ import annotations

import os

from .blas import load_fast_blas

# MLX and Metal read them when they start. A value that the user has set is kept.
VARIABLES = {
    # Else float32 products on M5 and later (macOS 26.2), and by CUDA, round their inputs to 10 bits of mantissa, and
    # results of the same product in two ways differ by more than the checks of `models.causal` allow.
    "MLX_ENABLE_TF32": "0",
    # Else the macOS watchdog ends long command buffers while the display is on (MLX issue 3267).
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
}


def prepare_mlx() -> None:
    """Sets `VARIABLES` and loads a fast BLAS. Every process that computes with MLX calls it before it imports MLX.

    Child processes inherit the variables. A process that imports nothing of MLX gives them to its children by
    `child_process.worker_environment`.

    Raises:
        ConfigError, RuntimeError: as `load_fast_blas`.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    load_fast_blas()


def variables() -> dict[str, str | None]:
    """The values of `VARIABLES` in this process; None for one that is not set."""
    return {name: os.environ.get(name) for name in VARIABLES}
