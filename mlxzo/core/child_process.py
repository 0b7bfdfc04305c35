"""Child processes: the environment of those that import MLX, and their pipes."""

from __future__ import annotations

import os
import signal
import site
from pathlib import Path
from typing import IO, AnyStr


def worker_environment() -> dict[str, str]:
    """The environment of a worker: that of this process, and variables that have to be set before MLX starts."""
    environment = {
        # A crash writes its traceback to worker.log.
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Else the macOS watchdog ends long command buffers while the display is on (MLX issue 3267).
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
        **os.environ,
    }
    # A worker excludes the current folder from its search path (-P), so that a user's yaml.py cannot shadow a module,
    # and must still find the package that this process runs, installed or not.
    package = str(Path(__file__).parents[2])
    if package not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return environment


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
