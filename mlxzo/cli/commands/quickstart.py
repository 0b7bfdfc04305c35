"""See it work: tune a small model on an embedded task, from nothing, in two or three minutes.

  mlxzo quickstart

A 135-million-parameter model learns to route messages of a shop's customers to four queues, by forward passes alone.
Only its final norm trains: all layers before it run once for each message, and a step takes a fraction of a second. The
run ends when the loss of the validation messages no longer falls: it is `mlxzo train --task support_desk` with all its
defaults. It saves its options as config.yaml, for `mlxzo train --config`. The model is downloaded once; no account and
no data are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import events
from ...core.errors import EXIT_DONE
from ...core.run_directory import RunDirectory
from ..options import add_config_options, add_json, config_values
from ..printing import say

if TYPE_CHECKING:
    from rich.table import Table

_OPTIONS = ("seed", "steps", "out")
_TASK = "support_desk"
# Messages outside the data.
_MESSAGE = "The jacket is too small. May I swap it for a larger one?"
_MESSAGES = (_MESSAGE, "Why was I charged twice this month?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_config_options(parser, _OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.supervisor import Supervisor
    from ..console import output
    from ..foreground import train
    from .train import read_config

    run = RunDirectory.create(read_config({"task": _TASK, **config_values(arguments)}, None))
    train(Supervisor(run), as_json=arguments.json)
    if not arguments.json:
        say("\nThe first test messages, which the run did not learn from:\n")
        output().print(answers_table(run))
        say("\nNext, try:")
        for command in next_commands(run, _program()):
            say(f"  {command}")
    return EXIT_DONE


def answers_table(run: RunDirectory) -> Table:
    """The answers of a finished run to its first test rows with their probabilities, base beside tuned."""
    from ..console import listing

    answers = [event.items for event, _ in run.events() if isinstance(event, events.Samples) and event.split == "test"]
    rows = [
        [item["right"].strip(), _answer(item), _answer(tuned), item["prompt"].partition("\n")[0]]
        for item, tuned in zip(answers[0], answers[-1], strict=True)
    ]
    return listing(["right", "base", "tuned", "message"], rows)


def _answer(item: dict[str, Any]) -> str:
    mark = "+" if item["answer"] == item["right"] else "-"
    return f"{mark} {item['answer'].strip()} {100 * item['share']:.0f} %"


def _program() -> str:
    """The words by which a shell finds mlxzo: it may have been called by its path, without an activated environment."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:
        return "uv run mlxzo"
    if shutil.which("mlxzo"):
        return "mlxzo"
    own = sys.argv[0]
    return shlex.quote(own) if Path(own).name == "mlxzo" else f"{shlex.quote(sys.executable)} -m mlxzo"


def next_commands(run: RunDirectory, program: str = "mlxzo") -> list[str]:
    """Three commands to try after a finished run, ready to paste: label one message, label many, use it in mlx-lm."""
    near = os.path.relpath(run.path)
    path = shlex.quote(near if len(near) < len(str(run.path)) else str(run.path))
    rows = " ".join(shlex.quote(json.dumps({"text": message})) for message in _MESSAGES)
    return [
        f"{program} generate --run {path} {shlex.quote(_MESSAGE)}",
        f"printf '%s\\n' {rows} | {program} predict --run {path} -",
        f"{program} export {path} --to adapter",
    ]
