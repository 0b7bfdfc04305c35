"""The command line that starts a run with a given configuration."""

from __future__ import annotations

import shlex

from mlxzo.core.config import RunConfig, options
from mlxzo.core.options import flag

# The options that the defaults of others depend on.
_DECIDING = ("scope", "estimator", "method")


def command_line(config: RunConfig) -> str:
    """`mlxzo train` with a flag for every option that is not as it would be anyway; ready to paste."""
    plain = RunConfig.from_mapping({name: getattr(config, name) for name in _DECIDING}).resolved()
    words = ["mlxzo", "train", "--model", config.model, "--task", config.task]
    for field in options():
        value = getattr(config, field.name)
        # A default that depends on scope and estimator follows from them again.
        usual = {field.default} | ({getattr(plain, field.name)} if field.name not in _DECIDING else set())
        if field.name in ("model", "task", "name") or value in usual:
            continue
        words += [
            flag(field.name),
            "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value),
        ]
    return shlex.join(words)
