"""List runs, show one, and steer one that is running, whoever started it.

mlxzo runs ls
mlxzo runs show RUN
mlxzo runs pause RUN
mlxzo runs continue RUN
"""

from __future__ import annotations

import argparse
import dataclasses
from datetime import datetime
from typing import Any

from .. import events
from ..config import RunConfig
from ..control import COMMANDS, send
from ..errors import EXIT_DONE, MlxzoError
from ..runs import RunDirectory, list_runs
from .options import add_config_options, add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list the runs, oldest first")
    show = actions.add_parser("show", help="show one run")
    steering = {command: actions.add_parser(command, help=help) for command, help in COMMANDS.items()}
    for action in (show, *steering.values()):
        action.add_argument("run", metavar="RUN", help="a run directory, or the id of a run in the folder --out")
    for action in (ls, show):
        add_json(action)
    for action in (ls, show, *steering.values()):
        add_config_options(action, ("out",))


def run(arguments: argparse.Namespace) -> int:
    root = getattr(arguments, "out", RunConfig.out)
    if arguments.action in COMMANDS:
        found = RunDirectory.open(arguments.run, root)
        send(found, arguments.action)
        print(f"{found.id} is asked to {arguments.action}")
        return EXIT_DONE
    if arguments.action == "show":
        _show(RunDirectory.open(arguments.run, root), arguments.json)
        return EXIT_DONE
    summaries = [summary(found) for found in list_runs(root)]
    if arguments.json:
        print_json(summaries)
    elif not summaries:
        print(f"No runs in {root}. `mlxzo quickstart` makes the first.")
    else:
        from ..console import listing, output

        columns = ["run", "started", "status", "steps", "zero-shot", "tuned"]
        output().print(listing(columns, [_row(item) for item in summaries], right=("steps", "zero-shot", "tuned")))
    return EXIT_DONE


def summary(run: RunDirectory) -> dict[str, Any]:
    """What a list says of a run; `problem` is set where its configuration cannot be read."""
    found: dict[str, Any] = {"id": run.id, "path": str(run.path), "started": run.started(), "status": run.status}
    step = run.last_event(events.Step)
    found["step"] = step.step if isinstance(step, events.Step) else 0
    try:
        config = run.config
        found |= {name: getattr(config, name) for name in ("model", "task", "method", "scope", "seed", "steps")}
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
        f"{found['step']}/{found['steps']}",
        _metric(before),
        _metric(after),
    ]


def evaluations(result: dict[str, Any] | None) -> tuple[dict | None, dict | None]:
    """The zero-shot and the tuned evaluation in a result: on the test split, or on validation where there is none."""
    for split, tuned in (("test", ("test",)), ("validation", ("best", "validation"))):
        after = _inside(result, *tuned)
        if after is not None:
            return _inside(result, "zero_shot", split), after
    return None, None


def _inside(value: Any, *keys: str) -> dict | None:
    """A mapping inside nested mappings; None where a file of another version, or a damaged one, has none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _metric(evaluation: dict | None) -> str:
    from ..formatting import format_metric

    if not evaluation or not isinstance(evaluation.get("value"), int | float):
        return "-"
    return format_metric(str(evaluation.get("metric")), evaluation["value"])


def _show(run: RunDirectory, as_json: bool) -> None:
    past = [event for event, _ in run.events()]
    if as_json:
        shown = [dataclasses.asdict(event) for event in past if isinstance(event, events.Evaluated)]
        saved = [dataclasses.asdict(event) for event in past if isinstance(event, events.Saved)]
        print_json({**summary(run), "evaluations": shown, "saved": saved[-1:], "config": _config(run)})
        return
    from ..console import ResultTable, key_values, output
    from ..formatting import describe, evaluated_line

    found = summary(run)
    table = ResultTable()
    lines = []
    for event in past:
        table.add(event)
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
        facts += [(name, str(found[name])) for name in ("model", "task", "method", "scope", "seed")]
        status += f", step {found['step']} of {found['steps']}"
    console.print(key_values([*facts, ("status", status), *table.rows()]))
    if lines:
        print()
    for line in lines:
        print(line)
    if past and isinstance(past[-1], events.Failed):
        print("\n" + describe(past[-1]))


def _config(run: RunDirectory) -> dict[str, Any] | None:
    try:
        return run.config.to_dict()
    except MlxzoError:
        return None
