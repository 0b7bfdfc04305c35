"""The environment of every child process that imports MLX."""

from __future__ import annotations

import importlib.util
import os
import site
from pathlib import Path


def worker_environment() -> dict[str, str]:
    """The worker's environment: ours, and what has to be set before MLX starts."""
    environment = {
        # A crash writes where it happened to worker.log.
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Else the macOS watchdog ends long command buffers while the display is on (MLX issue 3267).
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
        **os.environ,
    }
    # The worker leaves the current folder out of its search path (-P), so that a user's yaml.py cannot get in its
    # way, and must still find the very package that this process runs, installed or not.
    package = str(Path(importlib.util.find_spec("mlxzo").origin).parent.parent)
    if package not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return environment
