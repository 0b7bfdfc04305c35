"""The command `mlxzo`: arguments in, exit code out. Only the module of the command that runs is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn, TextIO

from .. import __version__
from ..core.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_INTERRUPTED, ConfigError, MlxzoError
from ..core.failures import as_error
from ..core.formatting import shown
from ..core.mlx_lm_options import name_here
from ..core.removed_options import removed_command, removed_problem
from ..core.suggestion import did_you_mean
from .printing import print_json, say
from .streams import prepare_streams

# Command -> module under mlxzo.cli.commands, and its line in the overview.
COMMANDS = {
    "quickstart": ("quickstart", "see it work: a small model, an embedded task, a minute or two"),
    "train": ("train", "fine-tune a model on a task"),
    "compare": ("compare", "models, methods and scopes side by side, under one cap and one budget"),
    "batch": ("sweep", "many runs from one file: finished ones are skipped, interrupted ones resume"),
    "plan": ("plan", "what fits in a memory cap: models, methods, predicted memory and time"),
    "eval": ("evaluate", "measure a model, or a tuned run, on a task"),
    "predict": ("predict", "label the rows of a file, with probabilities"),
    "generate": ("generate", "try a tuned model beside its base"),
    "export": ("export", "write a tuned model as an mlx-lm adapter, an mlx-lm model, or a journal of kilobytes"),
    "replay": ("replay", "rebuild tuned weights from a journal and verify them"),
    "runs": ("runs", "list, show, compare, remove, pause and stop runs"),
    "models": ("models", "list the models known by name"),
    "tasks": ("tasks", "list the tasks"),
    "tui": ("tui", "the terminal app: set up, watch, race and try runs"),
    "doctor": ("doctor", "report on this machine: device, memory, speed, versions"),
}


class UsageError(ConfigError):
    """Arguments that the command line does not understand."""

    kind = "usage"
    title = "Usage"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a typed error, and names the option that an unknown one may have meant."""

    def __init__(self, **more: Any):
        super().__init__(**{"allow_abbrev": False, **more})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see `{self.prog} --help`")

    def parse_arguments(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As `parse_args`, with the nearest known option named for each unknown one.

        Raises:
            UsageError: the arguments do not parse.
        """
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            known = sorted(
                {
                    name
                    for parser in _with_subparsers(self)
                    for name, action in parser._option_string_actions.items()
                    if action.help != argparse.SUPPRESS
                }
            )
            options = [text.split("=")[0] for text in unknown if text.startswith("-") and text != "-"]
            problems = [_advice(text) or f"unknown option {text}{did_you_mean(text, known, '--')}" for text in options]
            self.error("; ".join(problems) or f"unexpected argument {shown(unknown[0])}")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; no exception leaves it, and no traceback is printed."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show is replaced; it must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _give_up(sys.stdout)
        return EXIT_DONE
    except KeyboardInterrupt:
        say("Interrupted.", error=True)
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("MLXZO_DEBUG"):
            import traceback

            say(traceback.format_exc(), error=True)
        known = as_error(error) or _unexpected(error)
        _report_somewhere(known, as_json="--json" in arguments)
        return known.exit_code


def _report_somewhere(error: MlxzoError, *, as_json: bool) -> None:
    """Reports an error on whichever of stdout and stderr can still be written."""
    for asked in (as_json, False):
        try:
            report(error, as_json=asked)
            sys.stdout.flush()
            return
        except OSError:
            _give_up(sys.stdout)


def _give_up(stream: TextIO) -> None:
    """Sends what is left in a stream that cannot be written nowhere; Python would complain of it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def report(error: MlxzoError, *, as_json: bool = False) -> None:
    """Prints an error for a person on stderr, or as {"error": {...}} on stdout."""
    if as_json:
        print_json({"error": error.to_dict()})
        return
    from ..core.formatting import describe

    say(describe(error), error=True)


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name not in COMMANDS:
        # Prints help or the version and exits, or raises for anything else.
        return _overview(arguments or ["--help"])
    parser = command_parser(name)
    try:
        parsed = parser.parse_arguments(arguments[1:])
    except SystemExit as done:  # --help
        return int(done.code or EXIT_DONE)
    return _module(name).run(parsed)


def command_parser(name: str) -> Parser:
    """The parser of the command `name`, described by the docstring of its module."""
    module = _module(name)
    parser = Parser(
        prog=f"mlxzo {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"mlxzo.cli.commands.{COMMANDS[name][0]}")


def _overview(arguments: list[str]) -> int:
    parser = Parser(
        prog="mlxzo",
        description="Fine-tune language models in the memory that running them takes (MeZO on Apple's MLX).",
        epilog="`mlxzo COMMAND --help` explains a command. Begin with `mlxzo quickstart`.",
    )
    parser.add_argument("--version", action="version", version=f"mlxzo {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    word = arguments[0]
    if gone := removed_command(word):
        raise UsageError(gone, "`mlxzo --help` lists the commands")
    if not word.startswith("-"):
        raise UsageError(
            f"unknown command {shown(word)}{did_you_mean(word, COMMANDS)}", f"choose one of {', '.join(COMMANDS)}"
        )
    try:
        parser.parse_arguments(arguments)
    except SystemExit as done:  # --help, --version
        return int(done.code or EXIT_DONE)
    return EXIT_DONE


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _advice(flag: str) -> str:
    """The problem of a flag that was removed, or that is mlx-lm's; empty for any other."""
    name = flag.lstrip("-").replace("-", "_")
    found = removed_problem(name) or name_here(name)
    return flag + found.removeprefix(name) if found else ""


def _unexpected(error: Exception) -> MlxzoError:
    from ..core.errors import InternalError

    known = InternalError(
        f"{type(error).__name__}: {error}",
        "this is a fault in mlxzo: please report it, with the command and its output under MLXZO_DEBUG=1",
    )
    assert known.exit_code == EXIT_INTERNAL
    return known
