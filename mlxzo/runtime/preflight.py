"""Checks of a configuration's names and paths before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..core.config import RunConfig


def check_names(config: RunConfig) -> RunConfig:
    """Checks that task and model exist; returns the configuration with absolute paths, valid in any folder.

    Raises:
        ConfigError: there is no such task. ModelError: there is no such model.
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
