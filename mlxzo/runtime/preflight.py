"""Checks of a configuration's names and paths before a run starts."""

from __future__ import annotations

import dataclasses

from ..core.config import RunConfig
from ..core.files import user_path


def check_names(config: RunConfig) -> RunConfig:
    """Checks that task and model exist; returns the configuration with absolute paths, valid in any folder.

    Raises:
        ConfigError: there is no such task, or no judge where the objective needs one. ModelError: there is no such
            model.
    """
    return check_model(check_task(config))


def check_task(config: RunConfig) -> RunConfig:
    """As `check_names`, for the task and its data."""
    from ..tasks.registry import check_judge, get_task

    changes: dict[str, str] = {}
    if config.data is not None:
        changes["data"] = str(user_path(config.data).absolute())
    if (file := user_path(config.task)).suffix in (".yaml", ".yml"):
        changes["task"] = str(file.absolute())
    check_judge(config, get_task(changes.get("task", config.task)))
    return dataclasses.replace(config, **changes)


def check_model(config: RunConfig) -> RunConfig:
    """As `check_names`, for the model."""
    from ..models.registry import find, load_registry

    if config.model not in load_registry():
        path = user_path(config.model)
        if path.exists():
            return dataclasses.replace(config, model=str(path.absolute()))
        if "/" not in config.model and not config.model.endswith(".gguf"):
            find(config.model)
    return config
