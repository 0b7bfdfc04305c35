"""Checks of the Setup form: options, names, data and memory, in the order in which one needs the other."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, MlxzoError
from mlxzo.core.files import user_path
from mlxzo.core.formatting import counted, printable
from mlxzo.runtime.preflight import check_names
from mlxzo.tasks.base import TaskData
from mlxzo.tasks.custom import CustomTask
from mlxzo.tasks.reading import FOLDER
from mlxzo.tasks.registry import check_answers, get_task, load_task

from .planning import Prediction, predict, sizes, training_time
from .run_list import look
from .widgets.text import problem_text

# The newest runs, searched for a finished one of the same kind, whose speed predicts this one's time.
_RUNS_SEARCHED = 50
# Characters of an example's prompt, of whose end the answer follows.
_PROMPT_SHOWN = 600


@dataclass(frozen=True)
class CheckResult:
    """A configuration or its problems; its data, predicted memory and expected time."""

    config: RunConfig | None
    problems: tuple[str, ...] = ()
    data: TaskData | None = None
    data_problem: MlxzoError | None = None
    is_custom: bool = False
    """True if the rows suit the task `custom` and not the one that is chosen."""
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
    data, data_problem, is_custom = None, None, False
    try:
        task = get_task(config.task)
        if config.data is None and task.embedded is None and task.hub is None:
            raise ConfigError(
                f"the task {task.name} has no rows of its own",
                f"name the folder of your rows in the field above; {FOLDER}",
            )
        # Rows on the hub are downloaded by the run itself.
        if config.data is not None or task.embedded is not None:
            data = load_task(config)
            check_answers(config, data.task)
    except MlxzoError as error:
        data_problem = error
        is_custom = config.data is not None and config.task != CustomTask.name and _suits_custom(config)
    plan = predict(config, config.model, sizes(data, config))
    time = training_time(config, look(config.out)[0][:_RUNS_SEARCHED])
    return CheckResult(config, (), data, data_problem, is_custom, plan, time)


def _suits_custom(config: RunConfig) -> bool:
    """True if the task `custom` can use the rows of a configuration."""
    try:
        config = dataclasses.replace(config, task=CustomTask.name)
        check_answers(config, load_task(config).task)
    except MlxzoError:
        return False
    return True


def files_stamp(values: dict[str, Any]) -> tuple[object, ...]:
    """What changes when a file that the values name does: a task YAML, or one in the folder of rows."""
    found: list[object] = []
    for name in ("task", "data"):
        path = user_path(str(values.get(name, "")))
        if name == "task" and path.suffix not in (".yaml", ".yml"):
            continue
        with contextlib.suppress(OSError):
            for each in sorted(path.iterdir()) if name == "data" and values.get("data") else [path]:
                status = each.stat()
                found.append((each.name, status.st_mtime_ns, status.st_size))
    return tuple(found)


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
        counts = f"{len(data.train)} training, {len(data.validation)} validation, {counted(len(data.test), 'test row')}"
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
    if task.reward is not None:
        lines.append(f"judged by: {printable(task.reward.description)}\n", "dim")
    lines.append(printable(prompt if len(prompt) <= _PROMPT_SHOWN else f"…{prompt[-_PROMPT_SHOWN:]}"))
    # The mark is on the answer alone, without the space that joins it to the prompt.
    word = answer.lstrip()
    lines.append(printable(answer[: len(answer) - len(word)]))
    lines.append(printable(word) or " …", "bold reverse" if word else "bold")
    return lines
