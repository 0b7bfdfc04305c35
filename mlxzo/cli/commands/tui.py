"""The terminal app: set up runs, watch them, race them, try what they made.

mlxzo tui
mlxzo tui runs/RUN
mlxzo tui --demo

F1 explains what has the focus, ctrl+p lists every command, ctrl+q closes. Closing it need not end a run: a run can be
opened again at any time, and so can one that `mlxzo train` started.
"""

from __future__ import annotations

import argparse
import os
import sys

from ...core.errors import EXIT_DONE, ConfigError
from ..options import add_config_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run to open: its directory or id")
    parser.add_argument("--demo", action="store_true", help="play a recorded run; nothing is trained")
    add_config_options(parser, ("out",))


def run(arguments: argparse.Namespace) -> int:
    from ...core.config import RunConfig
    from ...core.run_directory import RunDirectory

    root = getattr(arguments, "out", RunConfig.out)
    opened = None if arguments.run is None else RunDirectory.open(arguments.run, root)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("the terminal app needs a terminal", "in scripts, use `mlxzo train` and `mlxzo runs`")
    if os.environ.get("TERM") == "dumb":
        raise ConfigError(
            "the terminal app needs a terminal that can place text, and TERM is dumb",
            "start it in a terminal of its own, or set TERM to what this one is, such as xterm-256color",
        )
    from tui.app import MlxzoApp

    MlxzoApp(root=root, run=opened, demo=arguments.demo).run()
    return EXIT_DONE
