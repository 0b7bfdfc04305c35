"""MLX's own limits, for every process that loads a model."""

from __future__ import annotations

from ..core.device import computes_as_cpu
from ..core.meter import footprint_bytes, mlx_memory
from ..core.mlx_startup import prepare_mlx
from .sizes import uncapped_cache_bytes

# Wiring all of the recommended working set has frozen machines of 16 GB.
_WIRED_SHARE = 0.75


def start_mlx() -> None:
    """Prepares and imports MLX in a process that loads a model and has no memory cap, and sets MLX's limits.

    Raises:
        ConfigError, RuntimeError: as `prepare_mlx`.
    """
    prepare_mlx()
    set_limits(None)


def set_limits(cap_bytes: int | None, cache_limit_bytes: int | None = None) -> None:
    """Bounds MLX's cache of freed buffers, makes MLX free it before it exceeds the cap, and leaves the system memory on
    Metal. Imports MLX.

    MLX takes these limits as advice; `watch` enforces the cap.

    Args:
        cap_bytes: the run's cap.
        cache_limit_bytes: most freed buffers that MLX may keep for reuse; None: as for a process without a cap.
    """
    import mlx.core as mx

    mx.set_cache_limit(uncapped_cache_bytes(computes_as_cpu()) if cache_limit_bytes is None else cache_limit_bytes)
    if cap_bytes is not None:
        # MLX does not count the interpreter and its libraries.
        memory = mlx_memory()
        others = max(0, footprint_bytes() - memory.active_bytes - memory.cache_bytes)
        mx.set_memory_limit(max(1, cap_bytes - others))
    if mx.metal.is_available():
        wired = int(_WIRED_SHARE * int(mx.device_info().get("max_recommended_working_set_size", 0)))
        mx.set_wired_limit(wired if cap_bytes is None else min(wired, cap_bytes))
