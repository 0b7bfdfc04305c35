"""mlx-lm's adapter folders. Imports no MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.parsing import read_json_object

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
    return read_json_object(folder / ADAPTER_CONFIG, ModelError, "export the adapter again")
