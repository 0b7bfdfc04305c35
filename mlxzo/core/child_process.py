"""Child processes: the environment of those that import MLX, and their pipes."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
from pathlib import Path
from typing import IO, AnyStr

from .mlx_startup import VARIABLES


def worker_environment() -> dict[str, str]:
    """The environment of a worker: that of this process, and variables that have to be set before MLX starts."""
    environment = {
        # A crash writes its traceback to worker.log.
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **VARIABLES,
        **os.environ,
    }
    if path := search_path():
        environment["PYTHONPATH"] = path
    return environment


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package with this interpreter.

    It excludes the current folder from the search path (-P): a user's yaml.py beside the data must neither shadow a
    module nor be run.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def keep_awake(pid: int) -> subprocess.Popen[bytes] | None:
    """Keeps a Mac from going to sleep by itself until process `pid` ends; the display may.

    Returns:
        The process that does, which ends with `pid`; None elsewhere, or where caffeinate is missing.
    """
    program = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if program is None:
        return None
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [program, "-i", "-w", str(pid)], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
    except OSError:
        return None


def search_path() -> str | None:
    """The PYTHONPATH by which `module_command` finds the package that this process runs; None where it is installed."""
    package = str(Path(__file__).parents[2])
    if package in (*site.getsitepackages(), site.getusersitepackages()):
        return None
    others = (path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", package))
    return os.pathsep.join((package, *others))


def pipe(stream: IO[AnyStr] | None) -> IO[AnyStr]:
    """A stream of a child that was started with PIPE for it, which `Popen` declares optional.

    Raises:
        ValueError: the child was started without it.
    """
    if stream is None:
        raise ValueError("the child has no such pipe")
    return stream


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGKILL`; `signal 34` for one without a name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
