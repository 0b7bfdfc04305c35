"""The record of its task that an export carries: options, and the task itself where it has labels. Imports no MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..core import events
from ..core.config import RunConfig
from ..core.errors import MlxzoError
from ..core.yaml_file import read_yaml
from ..tasks.base import Task
from ..tasks.classification import Classification
from ..tasks.custom import CustomTask
from ..tasks.from_yaml import read_task_yaml, task_yaml
from ..tasks.registry import task_alone, task_names

OPTIONS = "mlxzo.yaml"
TASK = "task.yaml"
_RECORDED = ("task", "prompt_style", "max_tokens")


def task_record(config: RunConfig, emit: events.Emit) -> dict[str, str]:
    """The files that an export of a run carries beside its weights: names and contents.

    A task that its training rows define is read from them; where they are gone, a note says so.
    """
    values = {name: getattr(config, name) for name in _RECORDED}
    files: dict[str, str] = {}
    try:
        task = task_alone(config)
    except MlxzoError as error:
        emit(events.Note(f"the export does not record the labels of its task: {error.message}"))
    else:
        if isinstance(task, Classification):
            files[TASK] = task_yaml(task)
    built_in = config.task in task_names()
    if files and (not built_in or config.task == CustomTask.name):
        values["task"] = TASK
    elif not built_in:
        # The path of a file on this machine.
        del values["task"]
    return {OPTIONS: yaml.safe_dump(values, sort_keys=False), **files}


def export_options(folder: Path) -> dict[str, Any]:
    """The options that an export records; empty for a folder of another program.

    Raises:
        ConfigError: the record cannot be read.
    """
    if not (folder / OPTIONS).is_file():
        return {}
    values = {name: value for name, value in read_yaml(folder / OPTIONS).items() if name in _RECORDED}
    if values.get("task") == TASK:
        values["task"] = str(folder / TASK)
    return values


def recorded_task(folder: Path) -> Task | None:
    """The task with labels that an export records, as it was when the run trained; None without one.

    Raises:
        ConfigError: the record cannot be read.
    """
    return read_task_yaml(folder / TASK) if (folder / TASK).is_file() else None
