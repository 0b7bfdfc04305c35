"""Where mlxzo keeps what it downloads and converts: MLXZO_HOME, or ~/.cache/mlxzo."""

from __future__ import annotations

import os
from pathlib import Path


def mlxzo_home() -> Path:
    """The cache folder, absolute; it need not exist yet."""
    return Path(os.environ.get("MLXZO_HOME") or "~/.cache/mlxzo").expanduser().absolute()
