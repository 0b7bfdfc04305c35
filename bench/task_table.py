"""Writes the part of docs/tasks.md that follows from the tasks themselves.

python -m bench.task_table
"""

from __future__ import annotations

from pathlib import Path

from mlxzo.tasks.base import Task
from mlxzo.tasks.registry import get_task, task_names

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
BEGIN, END = "<!-- begin: written by `python -m bench.task_table` -->\n", "<!-- end -->\n"


def generated() -> str:
    """A table of the tasks, and a prompt of each with its answers."""
    tasks = [get_task(name) for name in task_names()]
    rows = ["| task | what it is | metric | fields of a row | rows from |", "|---|---|---|---|---|"]
    rows += [_row(task) for task in tasks]
    prompts = [text for task in tasks if task.sample_row is not None for text in _prompt(task)]
    return "\n".join([*rows, "", *prompts])


def page(text: str) -> str:
    """The page with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated()}\n{END}{after}"


def _row(task: Task) -> str:
    metric = ", ".join((task.metric, *task.more_metrics))
    if task.hub is not None:
        origin = f"[{task.hub.repo}](https://huggingface.co/datasets/{task.hub.repo}) at `{task.hub.revision[:8]}`"
    else:
        origin = "the package" if task.embedded else "`--data`"
    fields = ", ".join(f"`{name}`" for name in task.fields)
    return f"| `{task.name}` | {task.description} | {metric} | {fields} | {origin} |"


def _prompt(task: Task) -> list[str]:
    example = task.example_from_row(task.sample_row or {})
    answers = " / ".join(f"`{candidate}`".replace("\n", "⏎") for candidate in example.candidates)
    return [f"`{task.name}`, answered by {answers}:", "", "```", *example.prompt.split("\n"), "```", ""]


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
