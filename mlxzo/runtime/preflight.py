"""Finds mistyped names before anything starts, and makes paths absolute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..core.config import RunConfig


def check_names(config: RunConfig) -> RunConfig:
    """Finds a mistyped name before a run directory is made, and makes paths absolute, so that the run can be
    evaluated from anywhere.

    Raises:
        ConfigError: no such task; ModelError: no such model.
    """
    return check_model(check_task(config))


def check_task(config: RunConfig) -> RunConfig:
    """As `check_names`, for the task and its data."""
    from ..tasks.registry import get_task

    get_task(config.task)
    changes: dict[str, str] = {}
    if config.data is not None:
        changes["data"] = str(Path(config.data).expanduser().absolute())
    if config.task.endswith((".yaml", ".yml")):
        changes["task"] = str(Path(config.task).expanduser().absolute())
    return dataclasses.replace(config, **changes)


def check_model(config: RunConfig) -> RunConfig:
    """As `check_names`, for the model."""
    from ..models.registry import find, load_registry

    if config.model not in load_registry():
        path = Path(config.model).expanduser()
        if path.exists():
            return dataclasses.replace(config, model=str(path.absolute()))
        if "/" not in config.model and not config.model.endswith(".gguf"):
            find(config.model)
    return config
