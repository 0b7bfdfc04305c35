"""The command line that starts a run with a given configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex

from mlxzo.core.config import RunConfig, options
from mlxzo.core.errors import ConfigError
from mlxzo.core.options import flag

# They stand in every command line; a name follows from the other options.
_ALWAYS = ("model", "task", "name")


def command_line(config: RunConfig) -> str:
    """`mlxzo train` with a flag for every option that differs from the default it has here; ready to paste."""
    found = config.resolved()
    given = dataclasses.replace(config, name=None)
    # Defaults depend on other options, most of them on the estimator, and limits on whether there are steps.
    for field in sorted(options(), key=lambda field: (field.name != "steps", field.name == "estimator")):
        # Left out where the same run follows without it.
        with contextlib.suppress(ConfigError):
            less = dataclasses.replace(given, **{field.name: field.default})
            if field.name not in _ALWAYS and dataclasses.replace(less.resolved(), name=config.name) == found:
                given = less
    words = ["mlxzo", "train", "--model", config.model, "--task", config.task]
    for field in options():
        value = getattr(given, field.name)
        if field.name not in _ALWAYS and value != field.default:
            text = "all" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)
            words += [flag(field.name), text]
    return shlex.join(words)
