"""mlx-lm's adapter folders. Imports no MLX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import ModelError

ADAPTER_WEIGHTS = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def adapter_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's adapter_config.json.

    Raises:
        ModelError: the folder is no adapter folder, or its adapter_config.json cannot be read.
    """
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} is not an adapter folder: it has no {' and no '.join(missing)}",
            "name a folder that `mlxzo export --to adapter` or mlx-lm made",
        )
    try:
        found = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}", "export the adapter again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{folder / ADAPTER_CONFIG} is not a mapping", "export the adapter again")
    return found
