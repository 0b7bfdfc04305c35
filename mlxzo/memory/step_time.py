"""How long a step takes, guessed from three rates of this machine that are measured once and kept.

    mlxzo plan --calibrate

measures, in a child process, matrix products, array additions and exponentials in the dtype that a run computes with,
and writes the rates to calibration.json in mlxzo's folder. A guess counts the floating-point operations of the matrix
products, the bytes that everything else moves, and the exponentials of activations and attention; it knows nothing of
caches, launches or a busy machine. Only the child process imports MLX.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.config import RunConfig
from ..core.errors import InternalError
from ..core.files import mlxzo_home, write_atomic
from ..models.architecture import DTYPE_BYTES, ModelShape
from .coefficients import FUSED_HEAD_DIMS, layer_width
from .sizes import Data
from .trainable_sizes import trained

_FILE = "calibration.json"
_TIMEOUT_SECONDS = 120.0
_REPEATS = 5
# Reads and writes of each number that a layer makes.
_TOUCHES = 3
# Bytes moved for one number of a random direction: its words, its value, and the weight before and after.
_NOISE_BYTES = 16


@dataclass(frozen=True)
class Calibration:
    """What was measured, and on what.

    Attributes:
        flops: floating-point operations a second of a matrix product.
        bytes_per_second: read and written by an addition of large arrays.
        exponentials_per_second: of sigmoid, which costs one.
        on_cpu, device, threads, mlx: where; a calibration of another MLX release does not count.
    """

    flops: float
    bytes_per_second: float
    exponentials_per_second: float
    on_cpu: bool
    device: str
    threads: str
    mlx: str


def load_calibration() -> Calibration | None:
    """The calibration kept from an earlier call; None where there is none, or it is of another release of MLX."""
    try:
        kept = Calibration(**json.loads(_path().read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return kept if kept.mlx == metadata.version("mlx") else None


def calibrate() -> Calibration:
    """Measures this machine's rates in a child process, and keeps them.

    Raises:
        InternalError: the child failed, with its last words.
    """
    from ..core.child_process import worker_environment

    command = [sys.executable, "-P", "-m", "mlxzo.memory.step_time"]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, env=worker_environment()
        )
        last = (child.stderr.strip().splitlines() or ["no word"])[-1]
    except subprocess.TimeoutExpired:
        child, last = None, f"no answer within {_TIMEOUT_SECONDS:g} s"
    if child is None or child.returncode:
        raise InternalError(f"the calibration failed: {last}", "`mlxzo doctor` examines this machine")
    found = Calibration(**json.loads(child.stdout.strip().splitlines()[-1]))
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(), json.dumps(asdict(found), indent=2) + "\n")
    return found


def seconds_per_step(shape: ModelShape, config: RunConfig, data: Data, rates: Calibration) -> float:
    """A guess of the seconds that one step of a resolved configuration takes, on examples of mean length.

    A forward pass counts once, or twice and once more for each query of spsa; a backward pass as much for the
    activations' gradients, and as much again for the weights' where all train; checkpointing adds a forward pass.
    """
    length = data.mean_length
    tokens = config.batch_size * length * data.mean_rows
    moves = trained(shape, config)
    share = 1.0 - moves.frozen_layers / shape.layers if shape.layers else 1.0
    forward = _forward_seconds(shape, config, tokens, length, rates)
    if config.method == "mezo":
        queries = config.queries or 1
        passes = 2 * queries if config.estimator == "spsa" else queries + 1
        # Frozen layers run once a step for all passes, and are kept where the run comes back to its examples.
        frozen = 0.0 if config.activation_cache in ("ram", "disk", "auto") else (1.0 - share) * forward
        noise = moves.numbers * _NOISE_BYTES / rates.bytes_per_second
        return passes * (share * forward + noise) + frozen + queries * noise
    matrices = sum(tensor.size for tensor, _ in moves.tensors if tensor.rows > 1)
    passed = max(1.0, share * shape.layers * shape.layer_parameters)
    backward = share * forward * (1.0 + min(1.0, matrices / passed))
    again = share * forward if config.checkpointing == "on" else 0.0
    state = moves.numbers * 32 / rates.bytes_per_second
    return forward + backward + again + state


def _forward_seconds(shape: ModelShape, config: RunConfig, tokens: float, length: float, rates: Calibration) -> float:
    size = 4 if rates.on_cpu else DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
    products = 2.0 * tokens * shape.layers * (shape.layer_parameters + 2.0 * length * shape.queries)
    moved = _TOUCHES * size * tokens * shape.layers * layer_width(shape)
    exponentials = tokens * shape.layers * shape.intermediate
    if rates.on_cpu or shape.head_dim not in FUSED_HEAD_DIMS:
        scores = tokens * length * shape.heads * shape.layers
        moved += _TOUCHES * size * scores
        exponentials += scores
    moved += shape.weight_bytes(config.dtype)
    return products / rates.flops + moved / rates.bytes_per_second + exponentials / rates.exponentials_per_second


def _path() -> Path:
    return mlxzo_home() / _FILE


def _measure() -> Calibration:
    from ..core.blas import load_fast_blas

    load_fast_blas()
    import mlx.core as mx

    on_cpu = mx.default_device() == mx.cpu
    dtype = mx.float32 if on_cpu else mx.bfloat16

    def seconds(work: Any) -> float:
        mx.eval(work())
        taken = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            mx.eval(work())
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    n, k, m = (512, 1024, 2048) if on_cpu else (4096, 4096, 4096)
    a, b = (mx.random.normal(shape, key=mx.random.key(0)).astype(dtype) for shape in ((n, k), (k, m)))
    x = mx.random.normal(((2 if on_cpu else 16) * 2**20,), key=mx.random.key(1)).astype(dtype)
    mx.eval(a, b, x)
    return Calibration(
        flops=2.0 * math.prod((n, k, m)) / seconds(lambda: a @ b),
        bytes_per_second=3.0 * x.nbytes / seconds(lambda: x + x),
        exponentials_per_second=x.size / seconds(lambda: mx.sigmoid(x)),
        on_cpu=on_cpu,
        device=str(mx.device_info().get("device_name") or mx.default_device()),
        threads=os.environ.get("OPENBLAS_NUM_THREADS") or str(os.cpu_count()),
        mlx=metadata.version("mlx"),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_measure())))
