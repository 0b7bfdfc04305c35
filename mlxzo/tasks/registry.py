"""Tasks by name, and the rows of a run: from the package, a folder or the hub, then sampled."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.config import RunConfig
from ..core.errors import ConfigError, DataError
from ..core.files import user_path
from ..core.formatting import shown
from ..core.options import flag
from .base import Example, Task, TaskData
from .chat import in_style
from .choices import Copa, Record
from .classification import Classification
from .custom import CustomTask
from .from_yaml import read_task_yaml
from .judges import Reward
from .questions import Drop, Squad
from .reading import FOLDER, read_rows, split_paths
from .row_file import RowFile
from .row_problems import bad_rows
from .sampling import sample, sample_of_each
from .sentiment import Reviews, Sst2
from .superglue import BoolQ, Cb, MultiRc, Rte, Wic, Wsc
from .topics import AgNews, SmsSpam, SupportDesk, Trec

_TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(Reviews, SupportDesk),
        *(Sst2, Rte, Cb, BoolQ, Wsc, Wic, MultiRc, Copa, Record, Squad, Drop),
        *(Trec, AgNews, SmsSpam),
        CustomTask,
    )
}
_EMBEDDED = Path(__file__).parent / "data"

Progress = Callable[[str], None]
"""Called with a few words on the file that is being downloaded."""


def task_names() -> list[str]:
    """Names of the built-in tasks, the default first."""
    return list(_TASKS)


def get_task(name: str) -> Task:
    """A built-in task, or the one a task YAML describes (a name that ends in .yaml or .yml).

    Raises:
        ConfigError: no such task (naming the nearest), or a task YAML that is missing or wrong.
    """
    if name in _TASKS:
        return _TASKS[name]()
    if name.endswith((".yaml", ".yml")):
        return read_task_yaml(name)
    near = difflib.get_close_matches(name.lower(), _TASKS, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        f"there is no task {shown(name)}{hint}",
        f"choose one of {', '.join(_TASKS)}, or name a task YAML (a file that ends in .yaml)",
    )


def check_judge(config: RunConfig, task: Task) -> None:
    """Raises ConfigError if the objective of a configuration needs a judge and neither it nor its task names one, or
    both do."""
    own = next((name for name in ("reward_command", "reward_function") if getattr(config, name) is not None), None)
    if own and task.reward is not None:
        raise ConfigError(
            f"{own}: the task {task.name} names judges of its own, under reward",
            f"leave out {flag(own)}, or the reward of the task",
        )
    if config.objective == "reward" and own is None and task.reward is None:
        raise ConfigError(
            f"the task {task.name} names no judge, which the objective reward needs",
            "add `reward` to it (docs/tasks.md), or give --reward-command or --reward-function",
        )


def check_answers(config: RunConfig, task: Task) -> None:
    """Raises DataError if the rows of a task are prompts alone, and the run learns from answers or compares them."""
    if config.objective == "reward" or task.has_answers:
        return
    needs = "backpropagation" if config.method == "bp" else f"the objective {config.objective}"
    other = "--objective reward" if config.method == "mezo" else "--method mezo --objective reward"
    judge = "" if task.reward is not None or config.names_judge else " and a judge"
    raise DataError(
        f"the rows of the task {task.name} are prompts without an answer, which {needs} needs",
        f"{task.how_to_answer}, or use {other}{judge}",
    )


def task_alone(config: RunConfig) -> Task:
    """The task of a run without its rows; where the training rows define it, they are read.

    Raises:
        ConfigError: an unknown task, or own data that is not given. DataError: it cannot be read, or defines no task.
    """
    task = get_task(config.task)
    if not isinstance(task, CustomTask):
        return task
    if config.data is None:
        raise ConfigError(f"the task {task.name} is what its training rows say", "pass --data DIR: " + FOLDER)
    return _task_of(task, read_rows(split_paths(user_path(config.data))["train"]))


def load_task(config: RunConfig, *, progress: Progress | None = None) -> TaskData:
    """The task and the rows of a run.

    Training rows are drawn by the run's seed. Validation and test rows follow one permutation for all seeds, so that
    runs are compared on the same rows, and a smaller sample is the beginning of a larger one.

    Raises:
        ConfigError: an unknown task, or one that needs `data` and has none.
        DataError: rows are missing, malformed, or cannot be fetched.
    """
    task = get_task(config.task)
    if config.data is not None or task.embedded is not None:
        folder = _EMBEDDED / str(task.embedded) if config.data is None else user_path(config.data)
        source = "embedded" if config.data is None else f"folder {folder.resolve().name}"
        task, splits, remarks = _read_folder(task, folder, config.names_judge)
    elif task.hub is not None:
        from .hub import fetch_splits

        source, remarks = f"hub {task.hub.repo}", ()
        splits = fetch_splits(task, progress or (lambda text: None))
    else:
        raise _no_rows(task)
    splits = {name: [in_style(row, config.prompt_style) for row in rows] for name, rows in splits.items()}
    train = _training_examples(task, splits["train"], config)
    validation = sample(splits["validation"], config.validation_examples, "validation")
    test = sample(splits.get("test", []), config.test_examples, "test")
    sha256 = _sha256(task.reward, train, validation, test)
    return TaskData(task, tuple(train), tuple(validation), tuple(test), source, sha256, remarks, len(splits["train"]))


def check_folder(config: RunConfig) -> None:
    """Checks that a run has the folder of rows that it names, or a task with rows of its own; reads no row.

    Raises:
        ConfigError: an unknown task, or one that needs `data` and has none. DataError: the folder is missing or lacks
            files.
    """
    task = get_task(config.task)
    if config.data is not None:
        split_paths(user_path(config.data))
    elif task.embedded is None and task.hub is None:
        raise _no_rows(task)


def _no_rows(task: Task) -> ConfigError:
    return ConfigError(f"the task {task.name} has no data of its own", "pass --data DIR: " + FOLDER)


def held_out_rows(config: RunConfig) -> list[dict[str, Any]]:
    """The rows of the test split, else of validation, as they lie in a run's folder or in the package; none where they
    come from the hub.

    Raises:
        ConfigError, DataError: as `load_task`, for this split.
    """
    task = get_task(config.task)
    if config.data is None and task.embedded is None:
        return []
    paths = split_paths(_EMBEDDED / str(task.embedded) if config.data is None else user_path(config.data))
    return [row for _, row in read_rows(paths.get("test", paths["validation"])).rows]


def _training_examples(task: Task, examples: list[Example], config: RunConfig) -> list[Example]:
    """The examples that the run trains on.

    Raises:
        ConfigError: `train_per_label` is set, and the task has no labels. DataError: a label has fewer rows.
    """
    key, wanted = ("train", config.seed), config.train_per_label
    if wanted is None:
        return sample(examples, config.train_examples, *key)
    if not task.labels:
        raise ConfigError(
            f"train_per_label: the rows of the task {task.name} have no labels to count",
            "use --train-examples",
        )
    chosen = sample_of_each(examples, lambda example: example.target, wanted, *key)
    found = Counter(example.target for example in chosen)
    few = [f"{label}: {found[place]}" for place, label in enumerate(task.labels) if found[place] < wanted]
    if few:
        raise DataError(
            f"there are not {wanted} training rows of every label",
            "ask for fewer by --train-per-label, or add rows",
            few,
        )
    return chosen


def _read_folder(task: Task, folder: Path, keep_fields: bool) -> tuple[Task, dict[str, list[Example]], tuple[str, ...]]:
    """The task for the folder's training rows, the examples of every split, and remarks on the files.

    Args:
        keep_fields: see `RowFile.examples`.
    """
    files = {split: read_rows(path) for split, path in split_paths(folder).items()}
    splits: dict[str, list[Example]] = {}
    try:
        task = _task_of(task, files["train"])
    except DataError:
        if not files["train"].problems:
            raise
    else:
        splits = {split: file.examples(task.example_from_row, keep_fields=keep_fields) for split, file in files.items()}
    if problems := [problem for file in files.values() for problem in file.located()]:
        raise bad_rows(problems, task.row_form)
    if isinstance(task, Classification):
        for file in files.values():
            file.remarks += task.remarks(row for _, row in file.rows)
    return task, splits, tuple(f"{file.path.name}: {remark}" for file in files.values() for remark in file.remarks)


def _task_of(task: Task, train: RowFile) -> Task:
    """The task for these training rows.

    Raises:
        DataError: they define none.
    """
    try:
        return task.for_rows([row for _, row in train.rows])
    except ValueError as error:
        raise DataError(f"{train.path}: {error}", "correct the training rows") from None


def _sha256(reward: Reward | None, *splits: Sequence[Example]) -> str:
    """Hash of the examples, in order, and of the task's own judges; it covers the template, not file names or the form
    of the JSON."""
    digest = hashlib.sha256(b"" if reward is None else reward.settings.encode())
    for examples in splits:
        for example in examples:
            record: dict[str, Any] = {"p": example.prompt, "c": example.candidates, "t": example.target}
            if example.answers:
                record["a"] = example.answers
            if example.messages:
                # Fields that only conversations with tools have are left out elsewhere, where they would change a hash.
                record["m"] = [(each.role, each.content, *filter(None, [each.more])) for each in example.messages]
            if example.reply or example.tools:
                record["r"] = [example.reply and example.reply.to_dict(), example.tools]
            if example.ends_text:
                record["e"] = True
            digest.update(json.dumps(record, default=str).encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
