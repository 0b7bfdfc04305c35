"""Resuming an interrupted run: the options that may change and those that must not. Nothing here imports MLX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.formatting import counted
from ..core.run_directory import RunDirectory
from .preflight import check_task

TRAIN_FURTHER = (
    "on other data, train the tuned model as a model of its own: `mlxzo export RUN --to fused --out FOLDER`, then "
    "`mlxzo train --model FOLDER --task custom --data DIR`"
)

# Options that change neither the steps already done nor the weights that follow from them.
CHANGEABLE = (
    "steps",
    "max_seconds",
    "patience",
    "eval_every",
    "memory_cap",
    "micro_batch",
    "activation_cache",
    "checkpointing",
    "parallel",
    "shares",
    # What a judge that was too slow needs.
    "reward_seconds",
)


def resume_config(run: RunDirectory, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with which `run` resumes: its own, with changed values of options that may change.

    More steps than before are allowed; a schedule that falls to zero then uses the new number of steps from the current
    step on.

    Raises:
        ConfigError: the run is running, or finished without more steps to do, or options would change that must not
            (all of them are named).
    """
    before = run.config
    # The run has absolute paths.
    after = check_task(RunConfig.from_mapping({**before.to_dict(), **changes}))
    if run.status == "running":
        raise ConfigError(f"the run {run.id} is running", f"wait for it, or stop it with `mlxzo runs stop {run.id}`")
    problems = [
        f"{name}: {getattr(before, name)} in the run, {getattr(after, name)} now"
        for name in changes
        if name not in CHANGEABLE and getattr(before, name) != getattr(after, name)
    ]
    if problems:
        raise ConfigError(
            f"the run {run.id} cannot go on with other options" + (f": {problems[0]}" if len(problems) == 1 else ""),
            f"only {', '.join(CHANGEABLE)} may change; start a new run for the rest; {TRAIN_FURTHER}",
            problems if len(problems) > 1 else (),
        )
    if (result := run.result()) is not None and not _goes_on(before, after, result):
        raise ConfigError(
            f"the run {run.id} is finished, with {counted(result.get('steps', before.steps), 'step')}",
            "give it more with --steps, --minutes or --patience, or start a new run",
        )
    return after


def _goes_on(before: RunConfig, after: RunConfig, result: Mapping[str, Any]) -> bool:
    """Returns whether a finished run has more to do with the configuration `after`."""
    stopped_by, done = result.get("stopped_by", "steps"), result.get("steps")
    if stopped_by == "time":
        return after.max_seconds is None or (before.max_seconds is not None and after.max_seconds > before.max_seconds)
    if stopped_by == "plateau":
        return after.patience == 0 or (after.patience or 0) > (before.patience or 0)
    return (after.steps or 0) > (done if isinstance(done, int) else before.steps or 0)
