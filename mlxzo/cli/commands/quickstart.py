"""See it work: tune a small model on an embedded task, from nothing, in a minute or two.

  mlxzo quickstart

A 135-million-parameter model learns to tell good reviews from bad with forward passes alone. Only its final norm
trains: all layers before it run once for each review, and a step takes a fraction of a second. The run ends when the
loss of the validation reviews no longer falls: it is `mlxzo train` with all its defaults. It saves its options as
config.yaml, for `mlxzo train --config`. The model is downloaded once; no account and no data are needed.
"""

from __future__ import annotations

import argparse
import os
import shlex

from ...core.errors import EXIT_DONE
from ...core.run_directory import RunDirectory
from ..options import add_config_options, add_json, config_values
from ..printing import say

_OPTIONS = ("seed", "steps", "out")
# A review outside the training data.
_PROMPT = "The soup was cold and nobody came to ask."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.supervisor import Supervisor
    from ..foreground import train
    from .train import read_config

    run = RunDirectory.create(read_config(config_values(arguments), None))
    train(Supervisor(run), as_json=arguments.json)
    if not arguments.json:
        say("\nNext, try:")
        for command in next_commands(run):
            say(f"  {command}")
    return EXIT_DONE


def next_commands(run: RunDirectory) -> list[str]:
    """Three commands to try after a finished run, ready to paste."""
    near = os.path.relpath(run.path)
    path = shlex.quote(near if len(near) < len(str(run.path)) else str(run.path))
    return [
        f"mlxzo generate --run {path} {shlex.quote(_PROMPT)}",
        f"mlxzo runs show {path}",
        f"mlxzo train --config {path}/config.yaml --seed {run.config.seed + 1}",
    ]
