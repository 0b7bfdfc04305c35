"""Estimated seconds per step, from three rates of this machine that are measured once and kept.

    mlxzo plan --calibrate

measures, in a child process, matrix products, array additions and exponentials in the compute dtype, and writes the
rates to calibration.json in mlxzo's folder. An estimate counts the floating-point operations of the matrix products,
the bytes that all other operations move, and the exponentials of activations and attention; it ignores caches, launch
times and the machine's load. Only the child process imports MLX.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.config import RunConfig
from ..core.errors import InternalError
from ..core.files import mlxzo_home, write_atomic
from ..core.parsing import CONTENT_ERRORS, read_json
from ..core.resolved_config import ResolvedConfig
from ..models.architecture import DTYPE_BYTES, ModelShape
from .layer_memory import FUSED_HEAD_DIMS, layer_width
from .sizes import Data
from .trainable_sizes import trained

_FILE = "calibration.json"
_TIMEOUT_SECONDS = 120.0
_REPEATS = 5
# Reads and writes of each value that a layer allocates.
_TOUCHES = 3
# Bytes moved for one element of a random direction: its words, its value, and the weight before and after.
_NOISE_BYTES = 16


@dataclass(frozen=True)
class Calibration:
    """Measured rates, and the device they belong to.

    Attributes:
        flops: floating-point operations a second of a matrix product.
        bytes_per_second: read and written by an addition of large arrays.
        exponentials_per_second: sigmoids a second, which cost one exponential each.
        on_cpu, device, threads, mlx: the device; a calibration of another MLX release is ignored.
    """

    flops: float
    bytes_per_second: float
    exponentials_per_second: float
    on_cpu: bool
    device: str
    threads: str
    mlx: str


def load_calibration() -> Calibration | None:
    """The calibration that an earlier call saved; None without one, or if it is of another release of MLX."""
    from importlib.metadata import version

    try:
        kept = Calibration(**read_json(_path()))
        _ = [1.0 / rate for rate in (kept.flops, kept.bytes_per_second, kept.exponentials_per_second)]
    except (OSError, *CONTENT_ERRORS):
        return None
    return kept if kept.mlx == version("mlx") else None


def calibrate() -> Calibration:
    """Measures this machine's rates in a child process, and saves them.

    Raises:
        InternalError: the child failed; the message has the last line of its stderr.
    """
    from ..core.child_process import module_command, worker_environment

    command = module_command("mlxzo.memory.step_time")
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, env=worker_environment()
        )
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        child, last = None, f"no answer within {_TIMEOUT_SECONDS:g} s"
    if child is None or child.returncode:
        raise InternalError(f"the calibration failed: {last}", "`mlxzo doctor` examines this machine")
    found = Calibration(**json.loads(child.stdout.strip().splitlines()[-1]))
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(), json.dumps(asdict(found), indent=2) + "\n")
    return found


def seconds_per_step(shape: ModelShape, config: RunConfig, data: Data, rates: Calibration) -> float:
    """Estimated seconds of one step of a resolved configuration, on examples of mean length.

    A forward pass counts once, or twice and once more for each query of spsa; a backward pass as much for the
    activations' gradients, and as much again for the weights' where all train; checkpointing adds a forward pass.
    """
    length = data.mean_length
    size = min(ResolvedConfig.of(config).batch_size, len(data.train))
    tokens = size * length * data.mean_rows
    moves = trained(shape, config)
    share = 1.0 - moves.frozen_layers / shape.layers if shape.layers else 1.0
    forward = _forward_seconds(shape, config, tokens, length, rates)
    if config.method == "mezo":
        # Frozen layers run once a step for all passes, and their output is cached if examples are read repeatedly.
        frozen = 0.0 if config.activation_cache in ("ram", "disk", "auto") else (1.0 - share) * forward
        noise = moves.numbers * _NOISE_BYTES / rates.bytes_per_second
        return config.point_count * (share * forward + noise) + frozen + config.direction_count * noise
    matrices = sum(tensor.size for tensor, _ in moves.tensors if tensor.rows > 1)
    passed = max(1.0, share * shape.layer_parameters)
    backward = share * forward * (1.0 + min(1.0, matrices / passed))
    again = share * forward if config.checkpointing == "on" else 0.0
    state = moves.numbers * 32 / rates.bytes_per_second
    return forward + backward + again + state


def _forward_seconds(shape: ModelShape, config: RunConfig, tokens: float, length: float, rates: Calibration) -> float:
    size = 4 if rates.on_cpu else DTYPE_BYTES[shape.dtype_at_rest(config.dtype)]
    layers = shape.layer_shapes
    queries = sum(layer.queries for layer in layers if layer.attends)
    products = 2.0 * tokens * (sum(layer.used_parameters for layer in layers) + 2.0 * length * queries)
    moved = _TOUCHES * size * tokens * shape.layers * layer_width(shape)
    exponentials = tokens * sum(layer.mlp for layer in layers)
    if rates.on_cpu or shape.head_dim not in FUSED_HEAD_DIMS:
        scores = tokens * length * shape.heads * sum(layer.attends for layer in layers)
        moved += _TOUCHES * size * scores
        exponentials += scores
    moved += shape.weight_bytes(config.dtype)
    return products / rates.flops + moved / rates.bytes_per_second + exponentials / rates.exponentials_per_second


def _path() -> Path:
    return mlxzo_home() / _FILE


def _measure() -> Calibration:
    from importlib.metadata import version

    from ..core.mlx_startup import prepare_mlx

    prepare_mlx()
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
        mlx=version("mlx"),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_measure())))
