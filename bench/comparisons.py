"""What the benchmarks share that compare contestants on several tasks, one `mlxzo compare` a task.

What is done is skipped when the command is given again. Reports, figures and rows of a task land in OUT/TASK.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxzo.cli.commands.compare import compare
from mlxzo.core.errors import EXIT_INTERRUPTED, MlxzoError
from mlxzo.core.formatting import describe
from mlxzo.experiments.comparison import Comparison, parse_contestant


def name_of(contestant: str) -> str:
    return parse_contestant(contestant)["name"]


def parser_of(description: str | None, contestants: Sequence[str], **defaults: Any) -> argparse.ArgumentParser:
    """A parser of the shared options.

    Args:
        description: docstring of the benchmark.
        contestants: all of them, each in one line with a name (see `parse_contestant`).
        defaults: of `minutes`, `tasks`, `validation_examples` and `test_examples`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--data-root", type=Path, required=True, help="folder with a folder of rows for each task")
    add("--out", type=Path, required=True, help="folder for the reports, one folder a task")
    add("--runs", type=Path, default=Path("runs"), help=f"folder for the runs {default}")
    add("--minutes", type=float, help=f"time of each run {default}")
    add("--tasks", nargs="+")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--validation-examples", type=int, help=f"at each evaluation {default}")
    add("--test-examples", type=int, help=f"before and after training {default}")
    add("--only", nargs="+", metavar="NAME", choices=[*map(name_of, contestants)])
    add("--print", action="store_true", help="show the comparisons as YAML, and run nothing")
    parser.set_defaults(**defaults)
    return parser


def shared_values(arguments: argparse.Namespace, contestants: Sequence[str]) -> dict[str, Any]:
    """The part of a comparison that follows from the shared options, for `Comparison.from_mapping`."""
    return {
        "minutes": arguments.minutes,
        "seeds": arguments.seeds,
        "validation_examples": arguments.validation_examples,
        "test_examples": arguments.test_examples,
        "out": str(arguments.runs),
        "contestants": [each for each in contestants if arguments.only is None or name_of(each) in arguments.only],
    }


def run(arguments: argparse.Namespace, comparison: Callable[[str, argparse.Namespace], Comparison]) -> int:
    """Compares on each task, or shows the comparisons; returns the first exit code that is not 0.

    Args:
        comparison: makes the comparison of a task.
    """
    worst = 0
    try:
        for task, each in [(task, comparison(task, arguments)) for task in arguments.tasks]:
            if arguments.print:
                print(each.to_yaml())
                continue
            print(f"\n{each.name}", flush=True)
            code = compare(each, arguments.out / task)
            if code == EXIT_INTERRUPTED:
                return code
            worst = worst or code
    except MlxzoError as error:
        print(describe(error), file=sys.stderr)
        return error.exit_code
    return worst
