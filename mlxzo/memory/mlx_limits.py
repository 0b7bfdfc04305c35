"""MLX's own limits, set from a run's memory cap."""

from __future__ import annotations

import mlx.core as mx

from ..core.meter import footprint_bytes, mlx_memory

# Wiring all of the recommended working set has frozen machines of 16 GB.
_WIRED_SHARE = 0.75


def set_limits(cap_bytes: int | None, cache_limit_bytes: int | None = None) -> None:
    """Makes MLX free its cached buffers before it exceeds the cap, and leave the system memory on Metal.

    MLX takes these limits as advice; `watch` enforces the cap.

    Args:
        cap_bytes: the run's cap.
        cache_limit_bytes: most freed buffers that MLX may keep for reuse.
    """
    if cache_limit_bytes is not None:
        mx.set_cache_limit(cache_limit_bytes)
    if cap_bytes is not None:
        # MLX does not count the interpreter and its libraries.
        memory = mlx_memory()
        others = max(0, footprint_bytes() - memory.active_bytes - memory.cache_bytes)
        mx.set_memory_limit(max(1, cap_bytes - others))
    if mx.metal.is_available():
        wired = int(_WIRED_SHARE * int(mx.device_info().get("max_recommended_working_set_size", 0)))
        mx.set_wired_limit(wired if cap_bytes is None else min(wired, cap_bytes))
