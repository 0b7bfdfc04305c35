"""Run many runs from one file: named one by one, spanned by grids, or both, each with every seed.

  mlxzo batch rates.yaml --dry-run
  mlxzo batch rates.yaml
  mlxzo batch rates.yaml --jobs 2 --memory-cap 6GB

  name: rates                 # optional: the file's own name
  out: runs                   # folder of the runs
  seeds: [0, 1]               # optional; every run with every seed
  defaults:                   # options of all runs, as `mlxzo train --help` lists them
    task: sst2
    memory_cap: 2GB
  runs:                       # runs one by one; the name is optional
    - {name: backpropagation, method: bp, scope: lora, steps: 500}
  grid:                       # every combination of the lists; several grids as a list, each with a name if you like
    lr: [1e-3, 3e-4]
    scope: [lora, norms/last-6]
    model: gemma-3-270m       # no list: holds for the whole grid

Runs are ordinary runs in the folder, called by the batch's name, what the grid varies (or their own name) and their
seed. The same command again skips what has finished, goes on with what has not, and tries once more what failed. What
`mlxzo train --resume` lets change (steps, memory_cap) may have been changed in the file for runs that are not done. One
that fails does not keep the others from running. A run that another command is running is left until the others are
done, so that two batches can share one file.

--jobs runs several at a time, for as long as their memory caps (of a run without one, the memory predicted for it) stay
together within --memory-cap. A run that needs more than that runs alone.

After each run, summary.jsonl in the folder of the batch's name holds one JSON object a run.

Exit code: 0 if every run has finished; else that of the first run of the file that failed; 130 after Ctrl-C, which
leaves every run so that the same command goes on with it. With --dry-run: 3 if a run is predicted not to fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...core.defaults import step_limit
from ...core.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from ...core.formatting import counted, format_bytes, format_metric, format_seconds, parse_bytes
from ..options import add_allow_code, add_config_options, add_json
from ..printing import print_json

if TYPE_CHECKING:
    from ...experiments.dry_run import Prospect
    from ...experiments.queue import Ended
    from ...experiments.sweep import Sweep

_MOST_JOBS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the YAML file of runs")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would run, with its predicted memory and time; train nothing"
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="most runs at a time (default: 1)")
    parser.add_argument(
        "--memory-cap",
        dest="cap",
        metavar="SIZE",
        help="memory that simultaneous runs share, such as 8GB (default: what is free when the command starts)",
    )
    add_allow_code(parser)
    add_json(parser)
    add_config_options(parser, ("out",))


def run(arguments: argparse.Namespace) -> int:
    from ...core.run_directory import is_run
    from ...experiments.sweep import Sweep

    problems = []
    if not 1 <= arguments.jobs <= _MOST_JOBS:
        problems.append(f"--jobs must be 1 to {_MOST_JOBS}")
    limit = None
    try:
        limit = None if arguments.cap is None else parse_bytes(arguments.cap)
    except ValueError as error:
        problems.append(f"--memory-cap: {error}")
    if problems:
        raise ConfigError("; ".join(problems), "`mlxzo batch --help` describes the options")
    sweep = Sweep.read(arguments.file, getattr(arguments, "out", None))
    if is_run(sweep.folder):
        raise ConfigError(f"{sweep.folder}, where the summary goes, is a run", "give the batch another name")
    if arguments.dry_run:
        return _dry_run(sweep, as_json=arguments.json)
    return _run(sweep, arguments.jobs, limit, allow_code=arguments.allow_code, as_json=arguments.json)


def _prospects(sweep: Sweep) -> list[Prospect]:
    from ...experiments.dry_run import prospects
    from ..console import waiting

    with waiting("Predicting memory and time"):
        return prospects(sweep.runs)


def _dry_run(sweep: Sweep, *, as_json: bool) -> int:
    """Prints the work that is left; the text at the top of this file lists the exit codes."""
    from ...experiments.queue import RunQueue, all_known
    from ...runtime.resume import CHANGEABLE
    from ..queue import print_lines, print_table

    RunQueue((each.config for each in sweep.runs), lambda run, event: None, changeable=CHANGEABLE).check()
    found = _prospects(sweep)
    seconds = all_known([each.seconds for each in found])
    total = None if seconds is None else sum(seconds)
    code = EXIT_DOES_NOT_FIT if any(each.fits is False for each in found) else EXIT_DONE
    if as_json:
        hours = None if total is None else total / 3600
        print_json({"batch": sweep.name, "runs": [each.to_dict() for each in found], "hours": hours})
        return code
    columns = ["run", "state", "steps", "predicted", "cap", "fits", "time"]
    print_table(columns, [_row(each) for each in found], ("steps", "predicted", "cap", "time"))
    time = "an unknown time" if total is None else f"about {format_seconds(total)}"
    lines = [
        "",
        f"{sum(not each.is_done for each in found)} of {counted(len(found), 'run')} to do; their steps take {time}.",
    ]
    lines += dict.fromkeys(f"{each.planned.config.model}: {each.unknown}" for each in found if each.unknown)
    if any(each.seconds is None and not each.unknown for each in found):
        lines.append("Times are unknown: `mlxzo plan --calibrate` measures this machine once, in a few seconds.")
    print_lines(lines)
    return code


def _row(each: Prospect) -> list[str]:
    config = each.planned.config
    limit = step_limit(config)
    begin = [str(config.name), each.state, str(each.step) if limit is None else f"{each.step}/{limit}"]
    if each.is_done:
        return [*begin, "", "", "", ""]
    cap = "none" if config.memory_cap_bytes is None else format_bytes(config.memory_cap_bytes)
    size = "unknown" if each.predicted_bytes is None else format_bytes(each.predicted_bytes)
    fits = {None: "unknown", True: "yes", False: "no"}[each.fits]
    return [*begin, size, cap, fits, "unknown" if each.seconds is None else format_seconds(each.seconds)]


def _run(sweep: Sweep, jobs: int, limit: int | None, *, allow_code: bool, as_json: bool) -> int:
    """Executes the runs that are not done, keeps the summary up to date and prints it; returns the exit code."""
    from ...core.meter import system_memory
    from ...experiments.report.sweep_summary import exit_code, record, refused, write_summary
    from ...memory.forecast import MemoryBudget
    from ...runtime.resume import CHANGEABLE
    from ..queue import watch

    found = _prospects(sweep)
    # A run larger than the machine's memory would only make the system end it, or another program.
    left_out = {each.planned.config.name: problem for each in found if (problem := each.too_large)}
    planned = {each.config.name: each for each in sweep.runs}
    records = {
        name: refused(each, left_out[name]) if name in left_out else record(each) for name, each in planned.items()
    }
    reservations = {each.planned.config.name: each.reservation_bytes for each in found}
    budget = MemoryBudget(system_memory()[1] if limit is None else limit, reservations)

    def begin() -> Iterable[str]:
        write_summary(records.values(), sweep.folder)
        return [f"{name} is left out: {problem.message}" for name, problem in left_out.items()]

    def update(ended: Ended) -> None:
        records[ended.run.id] = record(planned[ended.run.id])
        write_summary(records.values(), sweep.folder)

    configs = [each.config for name, each in planned.items() if name not in left_out]
    stopped = watch(
        configs, begin, update, jobs=jobs, admits=budget.admits, changeable=CHANGEABLE, allow_code=allow_code
    )
    code = EXIT_INTERRUPTED if stopped else exit_code(records.values())
    _show(sweep, list(records.values()), code, as_json=as_json)
    return code


def _show(sweep: Sweep, records: Sequence[dict[str, Any]], code: int, *, as_json: bool) -> None:
    """Prints the results of the runs, as a table and sentences or as one JSON document."""
    from ...experiments.report.sweep_summary import SUMMARY
    from ..queue import print_lines, print_table

    path = sweep.folder / SUMMARY
    if as_json:
        print_json({"batch": sweep.name, "summary": str(path), "exit_code": code, "runs": records})
        return

    def metric(each: dict[str, Any], name: str) -> str:
        return "-" if each[name] is None else format_metric(each["metric"], each[name])

    rows = [
        [
            each["id"],
            each["status"],
            *(metric(each, name) for name in ("majority", "zero_shot", "value")),
            format_seconds(each["seconds"]) if each["steps"] else "-",
            "-" if each["peak_bytes"] is None else format_bytes(each["peak_bytes"]),
        ]
        for each in records
    ]
    columns = ["run", "status", "majority", "zero-shot", "tuned", "time", "peak memory"]
    print_table(columns, rows, columns[2:])
    statuses = [each["status"] for each in records]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    problems = [f"{each['id']}: {each['problem']}" for each in records if each["problem"]]
    print_lines(["", f"{counted(len(records), 'run')}: {counts}", *problems, f"Summary: {path}"])
