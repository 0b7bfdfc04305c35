"""List the tasks, show a prompt of one, or check data before a run.

  mlxzo tasks
  mlxzo tasks show sst2
  mlxzo tasks check --task my-task.yaml --data my_folder

`check` reads the rows that a run would use, names every line that cannot be used, and reports the lengths of the
examples in tokens, what is cut, the balance of the labels, and duplicates. Of the model it needs only the tokenizer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ...core.config import DATA_OPTIONS
from ...core.errors import EXIT_DONE
from ...core.mlx_startup import prepare_mlx
from ..options import add_config_options, add_json, config_values
from ..printing import print_json, say

if TYPE_CHECKING:
    from ...tasks.base import Task

_OPTIONS = ("model", *DATA_OPTIONS, "prompt_style", "max_tokens", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="a task's prompt, labels, fields and data")
    show.add_argument("task", metavar="TASK", help="a task's name, or a task YAML of your own")
    check = actions.add_parser("check", help="check the data of a run")
    add_config_options(check, _OPTIONS)
    for action in (show, check):
        # SUPPRESS: an absent flag must not reset one that was given before the action.
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "check":
        return _check(arguments)
    from ...tasks.registry import get_task, task_names

    if arguments.action == "show":
        return _show(get_task(arguments.task), arguments.json)
    tasks = [get_task(name) for name in task_names()]
    if arguments.json:
        print_json([facts(task) for task in tasks])
        return EXIT_DONE
    from ..console import listing, output

    table = [[task.name, task.description, answers(task), task.metric, data(task)] for task in tasks]
    output().print(listing(["task", "what it is", "answers", "metric", "data"], table))
    say("\nWith --data DIR any task reads your own rows: train.jsonl, validation.jsonl and optionally test.jsonl,")
    say("or the same as .json, .csv, .tsv or .parquet. `mlxzo tasks show TASK` shows a prompt.")
    return EXIT_DONE


def facts(task: Task) -> dict[str, Any]:
    """Everything that the commands show of a task, as JSON values."""
    return {
        "name": task.name,
        "description": task.description,
        "metric": task.metric,
        "labels": list(task.labels),
        "data": data(task),
        "template": task.template,
        "fields": list(task.fields),
        "reward": json.loads(task.reward.settings) if task.reward else None,
    }


def answers(task: Task) -> str:
    """A text for the form of the answers: the labels, or where the candidates come from."""
    if task.labels:
        return " / ".join(task.labels)
    return "text that the model writes" if task.writes else "candidates named by the rows"


def data(task: Task) -> str:
    """A text for where a task's rows come from."""
    if task.embedded is not None:
        return "embedded"
    return "hub, or --data DIR" if task.hub is not None else "--data DIR"


def _show(task: Task, as_json: bool) -> int:
    if as_json:
        print_json({**facts(task), "prompt": task.example_prompt()})
        return EXIT_DONE
    from ..console import key_values, output

    lines = [
        ("task", f"{task.name}: {task.description}"),
        ("answers", answers(task)),
        ("metric", ", ".join((task.metric, *task.more_metrics))),
        *([("judges", task.reward.description)] if task.reward else []),
        ("fields", ", ".join(task.fields)),
        ("data", data(task)),
        ("prompt", task.example_prompt()),
    ]
    output().print(key_values(lines))
    return EXIT_DONE


def _check(arguments: argparse.Namespace) -> int:
    prepare_mlx()
    from ...core.config import RunConfig
    from ...core.events import Progress
    from ...engine.data_summary import duplicates_text, summarise
    from ...engine.session import encode_splits, find_model, within_context
    from ...models.loading import load_tokenizer
    from ...runtime.preflight import check_names
    from ...tasks.registry import load_task
    from ..console import RunView, output

    config = check_names(RunConfig.from_mapping(config_values(arguments)).resolved())
    loaded = load_task(config)
    with RunView() as view:
        # Of its events only downloads are shown: no model is loaded.
        resolved = find_model(config, lambda event: view.show(event) if isinstance(event, Progress) else None)
        config = within_context(config, resolved, view.show)
    tokenizer = load_tokenizer(resolved)
    splits = encode_splits(config, loaded, tokenizer)
    found = [summarise(name, getattr(loaded, name), encoded) for name, encoded in splits.items() if encoded]
    if arguments.json:
        print_json(
            {
                "task": loaded.task.name,
                "source": loaded.source,
                "sha256": loaded.sha256,
                "duplicates_across_splits": loaded.duplicates_across_splits,
                "remarks": loaded.remarks,
                "splits": [dataclasses.asdict(summary) for summary in found],
            }
        )
        return EXIT_DONE
    lines = [f"{loaded.task.name} ({loaded.source})", *(summary.text for summary in found), *loaded.remarks]
    output().print("\n".join(lines))
    if loaded.duplicates_across_splits:
        say(duplicates_text(loaded.duplicates_across_splits))
    return EXIT_DONE
