"""User-defined tasks in a small YAML file, which is data: nothing in it is executed.

    name: tickets                              # letters, digits, dots, dashes, underscores
    template: "{subject}\\n{body}\\nUrgent?"   # fields of a row in braces; {{ and }} for braces
    labels: {high: "yes", low: "no"}           # label in the data: word of the model; or a list
    label_field: priority                      # optional, `label` if absent
    description: support tickets               # optional

Instead of labels, `answer_field: reply` has the model generate its answer, and names the field of the gold answer or of
a list of them. `reward` names judges that score generated answers (see `reward_yaml`), with or without gold answers.
Without a template the rows are then {"prompt"}, or {"messages"} that end before the answer.

All scalars are read as text: `labels: [yes, no]` are two words. The newline that ends a block scalar (`|`) is not part
of the template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import ConfigError
from ..core.formatting import shown
from ..core.yaml_file import YamlFile
from .base import Example, Task, nfc, require, require_text, require_texts
from .classification import Classification, Label
from .conversations import prompt_of
from .judges import Reward
from .metrics import WRITTEN
from .questions import Questions, rendered
from .reward_yaml import read_reward
from .template import Template
from .yaml_entries import entries_of, text_of

KEYS = ("name", "template", "labels", "label_field", "answer_field", "reward", "description")
_OF_A_JUDGE = re.compile(r"(line \d+: )?reward( \w+)?: ")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_MAX_BYTES = 2**16


class YamlLabels(Classification):
    """Rows: the fields of the template as text, and the label field."""

    def __init__(self, name: str, template: str, classes: tuple[Label, ...], label_field: str, description: str):
        self.name = name
        self.description = description
        self.template = template
        self.classes = classes
        self.label_field = label_field


class YamlQuestions(Questions):
    """Rows: the fields of the template as text, and the field with one gold answer or a list of them."""

    def __init__(self, name: str, template: str, answer_field: str, description: str, reward: Reward | None = None):
        self.name = name
        self.description = description
        self.template = template
        self.answer_field = answer_field
        self.fields = (*Template(template).fields, answer_field)
        if reward is not None:
            self.reward, self.metric, self.more_metrics = reward, "reward", WRITTEN

    def gold_answers(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        gold = self._gold_answers(row)
        if self.reward is not None:
            self.reward.check(gold)
        return gold

    def _gold_answers(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        field = self.answer_field
        several = isinstance(require(row, field), list)
        gold = require_texts(row, field) if several else (require_text(row, field).strip(),)
        if any("\n" in answer for answer in gold):
            raise ValueError(f"{field!r} has several lines, and an answer ends with its line")
        return gold


class YamlPrompts(Task):
    """Rows without right answers: the fields of the template as text; or without a template {"prompt": text}, or
    {"messages": [...]} that end before the assistant's answer."""

    metric = "reward"
    has_answers = False

    def __init__(self, name: str, template: str | None, description: str, reward: Reward):
        self.name = name
        self.description = description
        self.template = template or "{prompt}"
        self.fields = Template(self.template).fields
        self.reward = reward
        self._any_form = template is None
        missing = "`answer_field` and a `template`" if self._any_form else "`answer_field`"
        self.how_to_answer = f"give the task file {missing}, and each row the field that it names"

    @property
    def row_form(self) -> str:
        return 'each row needs "prompt" or "messages"' if self._any_form else super().row_form

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        if self._any_form:
            return prompt_of(row)
        return Example(rendered(self.template, row), (), None)


def read_task_yaml(path: str | Path) -> Task:
    """The task a YAML file describes.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or describes no task; every problem is listed.
    """
    fix = f"a task has the keys {', '.join(KEYS)}"
    file = YamlFile.read(path, "task", holds="key: value", fix=fix, most_bytes=_MAX_BYTES, may_be_empty=False)
    problems: list[str] = []
    task = _task(entries_of(file.root, KEYS, problems), Path(path).parent, problems)
    if problems or task is None:
        if problems and all(map(_OF_A_JUDGE.match, problems)):
            fix = "the table of judges in docs/tasks.md has the settings of each kind"
        message = problems[0] if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{path}: {message}", fix, problems if len(problems) > 1 else ())
    return task


def task_yaml(task: Classification) -> str:
    """A task with labels as the YAML that `read_task_yaml` reads. All scalars are quoted, so that none is a number."""
    values = {
        "name": task.name,
        "description": task.description,
        "template": task.template,
        "label_field": task.label_field,
        "labels": {label.text: label.word for label in task.classes},
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_style='"', width=_MAX_BYTES)


def _task(entries: dict[str, yaml.Node], folder: Path, problems: list[str]) -> Task | None:
    """The task of the entries in a file of a folder, or None if there are problems."""
    answered, judged = "answer_field" in entries, "reward" in entries
    # Rows of prompts need no template.
    required = ("name",) if judged and not answered else ("name", "template")
    problems += [f"{key} is missing" for key in required if key not in entries]
    if (writes := answered or judged) and (others := [key for key in ("labels", "label_field") if key in entries]):
        what = "answer_field has the model write its answers" if answered else "reward is of answers that it writes"
        problems.append(f"{what}, and {others[0]} has it choose: leave one out")
    elif not writes and "labels" not in entries:
        problems.append("labels are missing, or answer_field or reward where the model writes its answers")
    texts = {
        key: text_of(key, node, problems, strip=key != "template")
        for key, node in entries.items()
        if key not in ("labels", "reward")
    }
    reward = read_reward(entries["reward"], folder, answered, problems) if judged else None
    words = _words(entries["labels"], problems) if "labels" in entries else {}
    name = texts.get("name")
    if name and not _NAME.fullmatch(name):
        problems.append(f"name: {shown(name)} must be 1-50 letters, digits, dots, dashes or underscores")
    target_field = texts.get("answer_field") if answered else None if judged else texts.get("label_field") or "label"
    if texts.get("template"):
        try:
            template = Template(texts["template"])
        except ValueError as error:
            problems.append(f"template: {error}")
        else:
            if not template.fields:
                problems.append("template: names no field; put one of your fields in braces, such as {text}")
            if target_field and target_field in template.fields:
                what = "what is asked for" if answered else "the label"
                problems.append(f"template: {{{target_field}}} is {what}, which would give the answer away")
    if problems or name is None:
        return None
    description = texts.get("description") or f"own task {name}"
    if target_field is None:
        assert reward is not None
        return YamlPrompts(name, texts.get("template"), description, reward)
    if answered:
        return YamlQuestions(name, texts["template"], target_field, description, reward)
    classes = tuple(Label(label, word) for label, word in words.items())
    return YamlLabels(name, texts["template"], classes, target_field, description)


def _words(node: yaml.Node, problems: list[str]) -> dict[str, str]:
    """Label -> word, in the order of the file."""
    before = len(problems)
    words: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        pairs = entries_of(node, None, problems).items()
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(None, item) for item in node.value]
    else:
        problems.append("labels must be a mapping of label to word, or a list of words")
        return {}
    for label, item in pairs:
        word = nfc(text_of("labels: a word", item, problems))
        key = word if label is None else nfc(label.strip())
        if not word:
            continue
        if not key:
            problems.append("labels: a label is empty")
        elif key in words or word in words.values():
            problems.append(f"labels: {shown(word)} is used twice")
        else:
            words[key] = word
    if len(words) < 2 and len(problems) == before:
        problems.append("labels: at least two are needed")
    return words
