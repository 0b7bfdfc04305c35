"""A report on this machine: hardware, software and speed as a run would see them, and advice.

Checks are independent: a failure is reported in place of the result. MLX is examined in a child process
(`python -m mlxzo.runtime.doctor`), so that a broken installation cannot end the report.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from ..core.files import folder_contents, mlxzo_home
from .environment import package_versions

_GEMM_SIZE = 1024
_GEMM_SECONDS = 1.0
_MLX_SECONDS = 120.0
_HUB_SECONDS = 6.0
_LITTLE_MEMORY_BYTES = 2e9
# A CPU core is well above this with any tuned BLAS, and below it with the reference BLAS.
_SLOW_GFLOPS_A_CORE = 15.0


def examine() -> dict[str, Any]:
    """The whole report, ready for JSON; the result of a failed check is {"error": reason}."""
    report: dict[str, Any] = {
        "system": _checked(_system),
        "mlx": _checked(_mlx_in_child),
        "versions": _checked(package_versions),
        "compiler": _checked(_compiler),
        "cache": _checked(_cache),
        "hub": _checked(_hub),
    }
    report["advice"] = advice(report)
    return report


def advice(report: dict[str, Any]) -> list[str]:
    """Improvements that the user can make, one sentence each, most important first."""
    mlx, system = report["mlx"], report["system"]
    lines = []
    if "error" in report["cache"]:
        lines.append(f"{report['cache']['error']}: set HOME, or MLXZO_HOME, to a folder that you can write to.")
    elif "error" in mlx:
        lines.append(f"MLX does not work here ({mlx['error']}): install mlxzo again in a fresh virtual environment.")
    on_cpu = mlx.get("device") == "cpu"
    if on_cpu and mlx.get("cuda_package"):
        lines.append(
            "The CUDA backend is installed but not in use: run "
            f"`pip install --force-reinstall --no-deps {mlx['cuda_package']}`."
        )
    if on_cpu and sys.platform == "linux" and not mlx.get("blas"):
        lines.append("No fast BLAS: `pip install ngsolve-openblas` (x86-64), or the system's libopenblas0 package.")
    elif on_cpu and system.get("load", 0) > (system.get("cores") or 1):
        lines.append(
            f"Other programs keep the {system['cores']} cores busy (load {system['load']}): a run beside them "
            "can be ten times slower. End them, or set OPENBLAS_NUM_THREADS to the cores that are left."
        )
    elif on_cpu and 0 < mlx.get("gemm_float32_gflops", 0) < _SLOW_GFLOPS_A_CORE * (system.get("cores") or 1):
        lines.append(
            "The BLAS is slow for this processor: close other programs, or try OPENBLAS_CORETYPE=Haswell or SkylakeX."
        )
    if sys.platform == "darwin" and platform.machine() != "arm64":
        lines.append("This Python runs as x86-64: install an arm64 Python, or MLX cannot use the GPU.")
    if "caffeinate" in system and system["caffeinate"] is None:
        lines.append("There is no caffeinate: set the Mac not to sleep by itself, or a run stops while it sleeps.")
    if on_cpu and not report["compiler"].get("path"):
        lines.append("No C++ compiler: mx.compile runs uncompiled and slower; install g++.")
    if system.get("memory_available_bytes", _LITTLE_MEMORY_BYTES) < _LITTLE_MEMORY_BYTES:
        lines.append("Little memory is free: close other programs, or choose a smaller model and batch.")
    if not report["hub"].get("reachable"):
        lines.append(
            "The model hub cannot be reached: models with a mirror (`mlxzo models`), local folders and .gguf files "
            "still work; HF_ENDPOINT names another hub."
        )
    return lines


def _checked(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return check()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _system() -> dict[str, Any]:
    from ..core.meter import gpu_working_set_bytes, system_memory

    total, available = system_memory()
    facts = {
        "os": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        # Runnable processes, averaged over the last minute.
        "load": round(os.getloadavg()[0], 2),
    }
    if sys.platform == "darwin":
        facts["gpu_working_set_bytes"] = gpu_working_set_bytes()
        facts["caffeinate"] = shutil.which("caffeinate")
    return facts


def _compiler() -> dict[str, Any]:
    return {"path": shutil.which("g++") or shutil.which("clang++")}


def _cache() -> dict[str, Any]:
    home = mlxzo_home()
    found = folder_contents(home)
    return {"path": str(home), "bytes": found.bytes, "files": found.files}


def _hub() -> dict[str, Any]:
    from ..models import hub

    # In a thread, since resolving a name may block for far longer than the time limit of the connection.
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(hub.why_unreachable()), daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    why = answer[0] if answer else f"no answer within {_HUB_SECONDS:g} s"
    return {"endpoint": hub.endpoint(), "reachable": why is None, "why": why}


def _mlx_in_child() -> dict[str, Any]:
    from ..core.child_process import module_command, signal_name, worker_environment

    try:
        child = subprocess.run(
            module_command("mlxzo.runtime.doctor"),
            capture_output=True,
            text=True,
            timeout=_MLX_SECONDS,
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_MLX_SECONDS:g} s"}
    if child.returncode < 0:
        return {"error": f"it was ended by {signal_name(-child.returncode)}"}
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"error": last[0]}
    # Libraries may print something first.
    return json.loads(child.stdout.strip().splitlines()[-1])


def _mlx() -> dict[str, Any]:
    from ..core.blas import load_fast_blas
    from ..core.mlx_startup import prepare_mlx, variables

    prepare_mlx()
    import mlx.core as mx

    try:
        described = mx.device_info()
    except Exception:
        described = {}
    return {
        "device": "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu",
        "blas": load_fast_blas(),
        "variables": variables(),
        "cuda_package": _cuda_package(),
        "device_name": described.get("device_name"),
        "architecture": described.get("architecture"),
        "device_memory_bytes": described.get("memory_size"),
        "recommended_working_set_bytes": described.get("max_recommended_working_set_size"),
        "gemm_float32_gflops": _gemm_gflops(mx, mx.float32),
        "gemm_bfloat16_gflops": _gemm_gflops(mx, mx.bfloat16),
    }


def _gemm_gflops(mx: Any, dtype: Any, repeats: int = 5) -> float:
    """Median speed of a square matrix product, in 10^9 floating-point operations a second."""
    key = mx.random.key(0)
    a = mx.random.normal((_GEMM_SIZE, _GEMM_SIZE), key=key).astype(dtype)
    mx.eval(a @ a)
    seconds = []
    while len(seconds) < repeats and sum(seconds) < _GEMM_SECONDS:
        began = time.perf_counter()
        mx.eval(a @ a)
        seconds.append(time.perf_counter() - began)
    return round(2 * _GEMM_SIZE**3 / statistics.median(seconds) / 1e9, 1)


def _cuda_package() -> str | None:
    names = (distribution.metadata["Name"] or "" for distribution in metadata.distributions())
    return next((name for name in names if name.replace("_", "-").startswith("mlx-cuda")), None)


if __name__ == "__main__":
    print(json.dumps(_mlx()))
