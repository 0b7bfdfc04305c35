"""List the tasks, with an example of the prompt that the model sees."""

from __future__ import annotations

import argparse

from ..errors import EXIT_DONE
from .options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..tasks.registry import get_task, task_names

    tasks = [get_task(name) for name in task_names()]
    if arguments.json:
        print_json(
            [
                {
                    "name": task.name,
                    "description": task.description,
                    "metric": task.metric,
                    "labels": list(task.labels),
                    "data": _data(task),
                    "template": task.template,
                    "fields": list(task.fields),
                }
                for task in tasks
            ]
        )
        return EXIT_DONE
    from ..console import listing, output

    table = [[task.name, task.description, " / ".join(task.labels) or "-", task.metric, _data(task)] for task in tasks]
    output().print(listing(["task", "what it is", "answers", "metric", "data"], table))
    print("\n--data DIR gives any task rows of your own: train.jsonl, validation.jsonl and optionally test.jsonl")
    return EXIT_DONE


def _data(task) -> str:
    if task.embedded is not None:
        return "embedded"
    return "hub, or --data DIR" if task.hub is not None else "--data DIR"
