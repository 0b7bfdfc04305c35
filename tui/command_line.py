"""The command line that starts a run with a given configuration."""

from __future__ import annotations

import shlex

from mlxzo.core.config import RunConfig, options
from mlxzo.core.options import flag

# Defaults of other options depend on these.
_DECIDING = ("scope", "estimator", "method")


def command_line(config: RunConfig) -> str:
    """`mlxzo train` with a flag for every option that differs from its default; ready to paste."""
    plain = RunConfig.from_mapping({name: getattr(config, name) for name in _DECIDING}).resolved()
    words = ["mlxzo", "train", "--model", config.model, "--task", config.task]
    for field in options():
        value = getattr(config, field.name)
        usual = {field.default} | ({getattr(plain, field.name)} if field.name not in _DECIDING else set())
        if field.name not in ("model", "task", "name") and value not in usual:
            text = "all" if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)
            words += [flag(field.name), text]
    return shlex.join(words)
