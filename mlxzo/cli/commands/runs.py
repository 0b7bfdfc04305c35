"""List, show, compare and remove runs, and control a running one, whatever process started it.

mlxzo runs ls
mlxzo runs ls --status failed --model gemma --sort accuracy
mlxzo runs show RUN
mlxzo runs diff RUN RUN
mlxzo runs rm RUN
mlxzo runs pause RUN
mlxzo runs continue RUN
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, get_args

from ...core import events
from ...core.config import RunConfig
from ...core.errors import EXIT_DONE, ConfigError, MlxzoError
from ...core.formatting import counted, format_bytes, format_metric, format_seconds, parse_bytes, step_counts_text
from ...core.run_directory import RunDirectory, Status, list_runs
from ...core.run_history import evaluations, metric_text, tuned_merit
from ...runtime.control import COMMANDS, send
from ..options import add_config_options, add_json
from ..printing import print_json, say

# Options that `ls` can search for a text.
_FILTERS = ("model", "task", "method")
# What a text of its own is looked for in.
_SEARCHED = ("id", "status", "estimator", "scope", *_FILTERS)
_WIDEST_PLOT = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list the runs, oldest first")
    show = actions.add_parser("show", help="show one run, with small plots")
    diff = actions.add_parser("diff", help="show the options and results in which two runs differ")
    rm = actions.add_parser("rm", help="remove runs with all their files")
    steering = {command: actions.add_parser(command, help=help) for command, help in COMMANDS.items()}
    ls.add_argument("text", metavar="TEXT", nargs="*", help="only runs with this in id, status, model, task or method")
    ls.add_argument("--status", action="append", choices=get_args(Status), help="only runs of this status; repeatable")
    for name in _FILTERS:
        ls.add_argument(f"--{name}", metavar="TEXT", help=f"only runs with this text in their {name}")
    ls.add_argument(
        "--sort",
        choices=tuple(_SORT_KEYS),
        default="started",
        help="the order (default: started); by accuracy, the best comes first",
    )
    ls.add_argument("--reverse", action="store_true", help="reverse the order")
    rm.add_argument("runs", metavar="RUN", nargs="+", help="ids of runs in the folder --out")
    rm.add_argument("--yes", action="store_true", help="do not ask")
    for action in (show, *steering.values()):
        action.add_argument("run", metavar="RUN", help="a run directory, or the id of a run in the folder --out")
    for name in ("one", "other"):
        diff.add_argument(name, metavar="RUN", help="a run directory, or the id of a run in the folder --out")
    for action in (ls, show, diff, rm):
        add_json(action)
    for action in (ls, show, diff, rm, *steering.values()):
        add_config_options(action, ("out",))


def run(arguments: argparse.Namespace) -> int:
    root = getattr(arguments, "out", RunConfig.out)
    match arguments.action:
        case "ls":
            _list(arguments, root)
        case "show":
            _show(RunDirectory.open(arguments.run, root), arguments.json)
        case "diff":
            _diff([RunDirectory.open(text, root) for text in (arguments.one, arguments.other)], arguments.json)
        case "rm":
            _remove(arguments.runs, root, asks=not arguments.yes, as_json=arguments.json)
        case command:
            found = RunDirectory.open(arguments.run, root)
            send(found, command)
            say(f"{found.id} is asked to {command}")
    return EXIT_DONE


def _list(arguments: argparse.Namespace, root: str) -> None:
    everything = [summary(found) for found in list_runs(root)]
    found = [each for each in everything if _matches(each, arguments)]
    found.sort(key=_SORT_KEYS[arguments.sort])
    if arguments.reverse:
        found.reverse()
    if arguments.json:
        print_json(found)
    elif not everything:
        say(f"No runs in {root}. `mlxzo quickstart` makes the first.")
    elif not found:
        say(f"No run in {root} matches ({counted(len(everything), 'run')}).")
    else:
        from ..console import listing, output

        columns = ["run", "started", "status", "steps", "zero-shot", "tuned"]
        output().print(listing(columns, [_row(item) for item in found], right=("steps", "zero-shot", "tuned")))


def _matches(found: dict[str, Any], wanted: argparse.Namespace) -> bool:
    """True if a run passes all filters; case is ignored."""

    def has(name: str, text: str) -> bool:
        return text.lower() in str(found.get(name, "")).lower()

    return (
        (not wanted.status or found["status"] in wanted.status)
        and all(has(name, text) for name in _FILTERS if (text := getattr(wanted, name)) is not None)
        and all(any(has(name, text) for name in _SEARCHED) for text in wanted.text)
    )


_SORT_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "started": lambda found: found["started"],
    "accuracy": lambda found: -tuned_merit(found["result"]),
    "status": lambda found: found["status"],
    "name": lambda found: found["id"],
}


def _remove(texts: Sequence[str], root: str, *, asks: bool, as_json: bool) -> None:
    """Removes all of these runs or, where one of them cannot be removed, none.

    Raises:
        ConfigError: lists every run that cannot be removed; or there is no terminal to ask on.
    """
    found: dict[str, RunDirectory] = {}
    problems: list[str] = []
    for text in texts:
        try:
            each = RunDirectory.inside(text, root)
        except ConfigError as error:
            problems.append(error.message)
            continue
        found[each.id] = each
        if each.worker_is_alive():
            problems.append(f"the run {each.id} is running: stop it first with `mlxzo runs stop {each.id}`")
    if problems:
        raise ConfigError("nothing was removed", "name runs of `mlxzo runs ls` that are not running", problems)
    if asks and not _confirmed(list(found.values())):
        say("Nothing was removed.", error=True)
        return
    for each in found.values():
        each.remove()
    if as_json:
        print_json({"removed": list(found)})
    else:
        say(f"Removed {', '.join(found)}")


def _confirmed(found: Sequence[RunDirectory]) -> bool:
    """Asks on the terminal whether to remove runs.

    Raises:
        ConfigError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError("nothing was removed, since there is no terminal to ask on", "give --yes")
    for each in found:
        say(f"  {each.id} ({each.status})", error=True)
    say("Remove them with all their files? [y/N] ", end="", error=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _diff(pair: Sequence[RunDirectory], as_json: bool) -> None:
    """Prints the options and then the results in which two runs differ."""
    from ...experiments.report.run_record import ComparedRun

    both = [ComparedRun(each.id, each.config, each) for each in pair]
    configs = [each.config.to_dict() for each in both]
    figures = [each.to_dict() for each in both]
    # A result repeats some options.
    apart = {*configs[0], "contestant", "run", "memory_cap_bytes"}
    chosen = {name: [each[name] for each in configs] for name in configs[0] if name not in ("name", "out")}
    reached = {name: [each[name] for each in figures] for name in figures[0] if name not in apart}
    changed, results = (
        {name: values for name, values in found.items() if values[0] != values[1]} for found in (chosen, reached)
    )
    if as_json:
        print_json({"runs": [each.id for each in pair], "options": changed, "results": results})
        return
    from ..console import listing, output

    console = output()
    ids = [each.id for each in pair]
    metrics = [str(each["metric"]) for each in figures]
    for title, rows in (
        ("option", [[name, *map(_option_text, values)] for name, values in changed.items()]),
        ("result", [[name, *map(_figure_text, (name, name), values, metrics)] for name, values in results.items()]),
    ):
        if rows:
            console.print(listing([title, *ids], rows))
        else:
            console.print(f"No {title} differs.")


def _option_text(value: Any) -> str:
    return "auto" if value is None else str(value)


def _figure_text(name: str, value: Any, metric: str) -> str:
    """A figure of `ComparedRun.to_dict` as text with its unit."""
    if value is None:
        return "-"
    if name in ("majority", "test", "best_validation", "zero_shot_validation", "zero_shot_test"):
        return format_metric(metric, value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name == "steps_per_second":
        return f"{value:.2f}"
    return format_seconds(value) if "seconds" in name else str(value)


def summary(run: RunDirectory) -> dict[str, Any]:
    """The facts of a run in a list; `problem` is set where its configuration cannot be read."""
    found: dict[str, Any] = {"id": run.id, "path": str(run.path), "started": run.started(), "status": run.status}
    found["step"], found["steps"] = run.step_counts()
    try:
        config = run.config
        found |= {name: getattr(config, name) for name in ("model", "task", "method", "scope", "seed")}
        found["estimator"] = config.estimator_in_use
    except MlxzoError as error:
        found["problem"] = " ".join([error.message, *error.details])
    found["result"] = run.result()
    return found


def _row(found: dict[str, Any]) -> list[str]:
    started = datetime.fromtimestamp(found["started"]).strftime("%Y-%m-%d %H:%M")
    if "problem" in found:
        return [found["id"], started, f"unreadable: {found['problem']}", "", "", ""]
    before, after = evaluations(found["result"])
    return [
        found["id"],
        started,
        found["status"],
        step_counts_text(found["step"], found["steps"]),
        metric_text(before),
        metric_text(after),
    ]


def _show(run: RunDirectory, as_json: bool) -> None:
    timed = list(run.events())
    past = [event for event, _ in timed]
    if as_json:
        shown = [dataclasses.asdict(event) for event in past if isinstance(event, events.Evaluated)]
        saved = [dataclasses.asdict(event) for event in past if isinstance(event, events.Saved)]
        print_json({**summary(run), "evaluations": shown, "saved": saved[-1:], "config": _config(run)})
        return
    from ...core.formatting import describe, evaluated_line
    from ...core.run_history import RunHistory
    from ..console import key_values, output, summary_rows
    from ..plots import plots

    found, history = summary(run), RunHistory.read(timed)
    lines = []
    for event in past:
        if isinstance(event, events.Evaluated):
            lines.append(evaluated_line(event))
        elif isinstance(event, events.Note):
            lines.append(f"Note: {event.text}")
    console = output()
    started = datetime.fromtimestamp(found["started"]).strftime("%Y-%m-%d %H:%M:%S")
    facts = [("run", run.id), ("path", str(run.path)), ("started", started)]
    status = found["status"]
    if "problem" in found:
        facts.append(("problem", found["problem"]))
    else:
        shown = ("model", "task", "method", "estimator", "scope", "seed")
        facts += [(name, str(found[name])) for name in shown if found[name] != ""]
        status += f", step {step_counts_text(found['step'], found['steps'], ' of ')}"
    console.print(key_values([*facts, ("status", status), *summary_rows(history)]))
    if lines:
        say()
    for line in lines:
        say(line)
    if console.encoding.startswith("utf"):
        cap = (_config(run) or {}).get("memory_cap")
        for line in plots(history, min(console.width, _WIDEST_PLOT), None if cap is None else parse_bytes(cap)):
            say(line)
    if past and isinstance(past[-1], events.Failed):
        say("\n" + describe(past[-1]))


def _config(run: RunDirectory) -> dict[str, Any] | None:
    try:
        return run.config.to_dict()
    except MlxzoError:
        return None
