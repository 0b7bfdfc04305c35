"""Checks of the Setup form: options, names, data and memory, in the order in which one needs the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.text import Text

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, MlxzoError
from mlxzo.core.formatting import printable
from mlxzo.runtime.preflight import check_names
from mlxzo.tasks.base import TaskData
from mlxzo.tasks.registry import get_task, load_task

from .planning import Prediction, predict, sizes, training_time
from .run_list import look
from .widgets.text import problem_text

# The newest runs, searched for a finished one of the same kind, whose speed predicts this one's time.
_RUNS_SEARCHED = 50


@dataclass(frozen=True)
class CheckResult:
    """A configuration or its problems; its data, predicted memory and expected time."""

    config: RunConfig | None
    problems: tuple[str, ...] = ()
    data: TaskData | None = None
    data_problem: MlxzoError | None = None
    plan: Prediction | None = None
    time: str = ""

    @property
    def reason(self) -> str:
        """The reason why the run cannot start; empty if it can."""
        if self.problems:
            more = len(self.problems) - 1
            return self.problems[0] + (f" (and {more} more)" if more else "")
        if self.data_problem is not None:
            return self.data_problem.message
        # Without a cap the user may start a run that is predicted not to fit.
        capped = self.config is not None and self.config.memory_cap is not None
        if capped and self.plan is not None and self.plan.problem is not None:
            return self.plan.problem.message
        return ""


def check(values: dict[str, Any]) -> CheckResult:
    """Checks values as a run does; reads files, raises nothing."""
    try:
        config = check_names(RunConfig.from_mapping(values).resolved())
    except ConfigError as error:
        return CheckResult(None, tuple(error.details or [error.message]), data_problem=_task_problem(values))
    except MlxzoError as error:
        return CheckResult(None, (error.message,))
    data, data_problem = None, None
    try:
        task = get_task(config.task)
        # Rows on the hub are downloaded by the run itself.
        if config.data is not None or task.embedded is not None or task.hub is None:
            data = load_task(config)
    except MlxzoError as error:
        data_problem = error
    plan = predict(config, config.model, sizes(data, config))
    time = training_time(config, look(config.out)[0][:_RUNS_SEARCHED])
    return CheckResult(config, (), data, data_problem, plan, time)


def _task_problem(values: dict[str, Any]) -> MlxzoError | None:
    """The error of the named task; None if there is none."""
    try:
        get_task(values.get("task", RunConfig.task))
    except MlxzoError as error:
        return error
    return None


def preview(checked: CheckResult) -> Text:
    """Row counts and an example of the task as the model sees it, or the problems of the rows, by line."""
    if (problem := checked.data_problem) is not None:
        return Text(problem_text(problem))
    if checked.config is None:
        return Text("")
    lines = Text()
    if (data := checked.data) is not None:
        task = data.task
        counts = f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test rows"
        lines.append(f"{counts} ({data.source})\n", "dim")
        if double := data.duplicates_across_splits:
            lines.append(f"⚠ {double} validation or test prompts are also training prompts\n")
        lines.append("".join(f"{printable(remark)}\n" for remark in data.remarks), "dim")
        example = data.train[0]
        prompt = example.prompt
        answer = "" if example.target is None else example.candidates[example.target]
    else:
        lines.append("its rows are downloaded from the hub when the run starts\n", "dim")
        task = get_task(checked.config.task)
        prompt, answer = task.example_prompt(), ""
    # Before the example, which may be longer than the panel.
    if task.labels:
        lines.append(f"answers: {printable(' / '.join(task.labels[:12]))}\n", "dim")
    lines.append(printable(prompt[-600:]))
    lines.append(printable(answer) or " …", "bold reverse" if answer else "bold")
    return lines
