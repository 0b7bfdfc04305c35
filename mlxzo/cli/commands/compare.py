"""Compare models, methods and scopes on one task, under one memory cap and one budget of time or steps.

  mlxzo compare --task sst2 --data DIR --memory-cap 2GB --minutes 10 --seeds 0,1,2 \\
      --contestant "smollm2-135m bp lora lr=1e-3" --contestant "gemma-3-270m mezo norms/last-6"
  mlxzo compare --config comparison.yaml
  mlxzo compare --runs runs/RUN runs/RUN --report DIR

A contestant is MODEL [METHOD] [SCOPE] [OPTION=VALUE ...]; name=NAME gives it a name of its own. In a file it may also
be a mapping of options:

  task: sst2
  memory_cap: 2GB
  minutes: 10
  seeds: [0, 1, 2]
  contestants:
    - {name: backpropagation, model: smollm2-135m, method: bp, scope: lora, lr: 1e-3}
    - gemma-3-270m mezo norms/last-6

Flags win over the file; all other options are those of `mlxzo train` and hold for every contestant that does not set
its own. --minutes counts steps and evaluations on the validation split, not loading, zero-shot and test. With it, steps
are as many as fit and the schedule is constant, unless they are given: a schedule goes by steps, never by the clock.

Where the task has fixed labels, a ridge probe of each model is measured first, once for each seed: a linear map from
the hidden state at the end of the prompt to the labels, at the cost of one forward pass an example. In the file,
`ridge_probe: false` leaves it out.

Runs follow one another, each in a process of its own, and are ordinary runs in the folder --out. The same command again
skips those that have finished and goes on with the others. A contestant that does not fit the cap or fails does not
keep the others from running. Table and report (HTML, SVG, PNG, CSV, JSON) are brought up to date after each run.

Exit code: 0 if every run finished, or was found not to fit before it began; else that of the first run that failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.config import RunConfig, options
from ...core.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from ...core.files import user_path
from ..options import add_allow_code, add_config_options, add_json, config_values
from ..printing import print_json

if TYPE_CHECKING:
    from ...core.events import Emit
    from ...experiments.comparison import Comparison
    from ...experiments.queue import Ended
    from ...experiments.report.summary import ComparisonReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...experiments.comparison import REPLACED

    parser.add_argument("--config", metavar="FILE", help="a YAML file of options and contestants")
    parser.add_argument(
        "--contestant",
        action="append",
        metavar="TEXT",
        dest="contestants",
        help="a contestant, such as `smollm2-135m mezo lora`; once for each, instead of those of the file",
    )
    parser.add_argument(
        "--minutes", metavar="X", help="minutes of each run (default: no limit; the run ends with --steps)"
    )
    parser.add_argument("--seeds", metavar="N,N,...", help="seeds that each contestant runs with (default: 0)")
    parser.add_argument(
        "--name", metavar="TEXT", help="name of the comparison (default: made of task and shared options)"
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="RUN",
        help="compare these existing runs (directories, or ids in the folder --out) and train nothing",
    )
    parser.add_argument("--report", metavar="DIR", help="folder of the report (default: that of the name, in --out)")
    add_allow_code(parser)
    add_json(parser)
    add_config_options(parser, [field.name for field in options() if field.name not in (*REPLACED, "name")])


def run(arguments: argparse.Namespace) -> int:
    if arguments.runs:
        return _compare_runs(arguments)
    comparison = read_comparison(arguments)
    folder = Path(arguments.report) if arguments.report else None
    return compare(comparison, folder, allow_code=arguments.allow_code, as_json=arguments.json)


def read_comparison(arguments: argparse.Namespace) -> Comparison:
    """The comparison of flags over a file.

    Raises:
        ConfigError: every problem at once.
    """
    from ...experiments.comparison import OWN_KEYS, Comparison

    # --name without a value must not replace the name in the file.
    flags = {key: value for key, value in config_values(arguments).items() if value is not None}
    flags |= {key: value for key in OWN_KEYS if (value := getattr(arguments, key, None)) is not None}
    return Comparison.read(arguments.config, flags) if arguments.config else Comparison.from_mapping(flags)


def compare(
    comparison: Comparison, folder: Path | None = None, *, allow_code: bool = False, as_json: bool = False
) -> int:
    """Executes the runs that are not done, keeps the report up to date and prints it; returns the exit code.

    Args:
        folder: of the report; None for the comparison's own folder.
        allow_code: the user allows the reward code of the runs to run.

    Raises:
        MlxzoError: existing runs of these names have other options, or the disk is full.
    """
    from ...experiments.report.probed_model import probed_models
    from ...experiments.report.run_record import ComparedRun
    from ...experiments.report.summary import ComparisonReport
    from ...experiments.report.write import write_report
    from ..queue import watch

    folder = user_path(folder or comparison.folder).absolute()
    planned, probes = comparison.runs(), comparison.probes(comparison.folder)

    def report() -> ComparisonReport:
        runs = [ComparedRun.planned(each.label, each.config) for each in planned]
        return ComparisonReport.of(comparison.name, runs, probed_models(probes))

    def begin() -> Iterable[str]:
        write_report(report(), folder, comparison.to_yaml())
        hopeless = [each for each in comparison.contestants if each.problem]
        return [f"the report is in {folder}", *(f"{each.name} will fail: {each.problem}" for each in hopeless)]

    def prepare(emit: Emit, stopping: Callable[[], bool]) -> None:
        for probe in probes:
            probe.measure(emit, stopping)

    def update(ended: Ended) -> None:
        if ended.seconds is not None:
            write_report(report(), folder, comparison.to_yaml())

    stopped = watch([each.config for each in planned], begin, update, prepare=prepare, allow_code=allow_code)
    found = report()
    show(found, folder, as_json=as_json)
    return EXIT_INTERRUPTED if stopped else exit_code(found)


def exit_code(report: ComparisonReport) -> int:
    """0 if every run finished or was found not to fit before it began, else that of the first that failed."""
    failed = [run.failed for run in report.runs if run.failed and run.status != "does not fit"]
    return failed[0].exit_code if failed else EXIT_DONE


def show(report: ComparisonReport, folder: Path, *, as_json: bool) -> None:
    """Prints a report as a table and sentences, or as one JSON document."""
    from ...experiments.report.tables import numbered, problems, short_table, status_text
    from ...experiments.report.write import PAGE
    from ..queue import print_lines, print_table

    if as_json:
        print_json({**report.to_dict(), "report": str(folder)})
        return
    for each in report.contenders:
        print_lines([numbered(report, each) + ("" if each.status == "finished" else f" ({status_text(each)})")])
    print_lines(numbered(report, each) for each in report.probed)
    header, rows = short_table(report)
    print_lines([""])
    print_table(header, rows, header[1:])
    failures = [f"{name}: {text}" for name, text in problems(report)]
    print_lines(["", report.verdict(), *report.remarks(), *failures, f"Report: {folder / PAGE}"])


def _compare_runs(arguments: argparse.Namespace) -> int:
    """Reports on existing runs; those of one contestant are found by their configurations."""
    from ...core.run_directory import RunDirectory
    from ...experiments.naming import digest, read_name
    from ...experiments.report.run_record import labelled
    from ...experiments.report.summary import ComparisonReport
    from ...experiments.report.write import write_report

    if arguments.contestants or arguments.config:
        raise ConfigError("--runs compares runs that exist", "leave out --contestant and --config, or leave out --runs")
    root = getattr(arguments, "out", RunConfig.out)
    runs = list(dict.fromkeys(RunDirectory.open(text, root) for text in arguments.runs))
    try:
        name = read_name(arguments.name or f"compare-runs-{digest(chr(10).join(run.id for run in runs))}")
    except ValueError as error:
        raise ConfigError(
            f"--name: {error}", "choose another --name, and a folder for the report with --report"
        ) from None
    folder = user_path(arguments.report or Path(root) / name).absolute()
    report = ComparisonReport.of(name, labelled(runs))
    write_report(report, folder)
    show(report, folder, as_json=arguments.json)
    return EXIT_DONE
