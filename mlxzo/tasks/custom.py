"""Own data without a task file: {"text", "label"} rows to classify, {"prompt", "completion"} rows to imitate.

The first training row that fits one of the two forms decides for the whole folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from .base import Example, Task, append, field_names, labelled, require, require_text, shown
from .labels import label_text, listed
from .template import Template

TEMPLATE = "{text}\nAnswer:"
_CLASSIFICATION = ("text", "label")
_COMPLETION = ("prompt", "completion")
_FORMS = "text and label, or prompt and completion"
_TEMPLATE = Template(TEMPLATE)


class CustomTask(Task):
    """Own data, before its rows are known: `for_rows` makes it one of the two tasks below."""

    name = "custom"
    description = 'your own rows, {"text", "label"} or {"prompt", "completion"}, from --data DIR'
    template = TEMPLATE
    fields = ("text", "label")

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> Task:
        rows = list(rows)
        for row in rows:
            if _fits(row, _CLASSIFICATION) != _fits(row, _COMPLETION):
                return OwnCompletions() if _fits(row, _COMPLETION) else OwnLabels(_labels(rows))
        # No row fits, so every line is reported by the task below with what it lacks.
        return self

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        both = _fits(row, _CLASSIFICATION) and _fits(row, _COMPLETION)
        raise ValueError(f"needs either {_FORMS}; found {'both' if both else field_names(row)}")


class OwnLabels(Task):
    """Rows: {"text": text, "label": text, whole number, true or false}.

    The labels, and the words of the candidates, are those of the training rows, sorted.
    """

    name = "custom"
    description = "your own rows to classify"
    template = TEMPLATE
    fields = _CLASSIFICATION

    def __init__(self, labels: tuple[str, ...]):
        self.labels = labels

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_form(row, _COMPLETION, _CLASSIFICATION)
        text = require_text(row, "text").strip()
        label = label_text(require(row, "label"))
        if label not in self.labels:
            raise ValueError(f"the label {shown(label)} is not one of the task's: {listed(self.labels)}")
        return labelled(_TEMPLATE.render({"text": text}), self.labels, self.labels.index(label))


class OwnCompletions(Task):
    """Rows: {"prompt": text, "completion": text}, joined by a space where neither brings white space."""

    name = "custom"
    description = "your own prompts and completions"
    metric = "loss"
    template = "{prompt}"
    fields = _COMPLETION

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_form(row, _CLASSIFICATION, _COMPLETION)
        prompt, candidate = append(require_text(row, "prompt"), require_text(row, "completion"))
        return Example(prompt, (candidate,), 0)


def _labels(rows: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """The labels of the training rows, sorted; rows that are wrong are reported later, by line."""
    found, total = set(), 0
    for row in rows:
        with suppress(KeyError, ValueError):
            found.add(label_text(row["label"]))
            total += 1
    if len(found) == 1 and total == len(rows):
        raise ValueError(f"every row has the label {shown(found.pop())}, and classification needs at least two")
    if len(found) > 20 and len(found) > total / 2:
        raise ValueError(
            f"{len(found)} different labels in {total} rows is no classification; "
            "write the rows as prompt and completion"
        )
    return tuple(sorted(found))


def _fits(row: Mapping[str, Any], form: tuple[str, ...]) -> bool:
    return all(name in row for name in form)


def _refuse_form(row: Mapping[str, Any], other: tuple[str, ...], own: tuple[str, ...]) -> None:
    if _fits(row, other):
        raise ValueError(f"has {' and '.join(other)}, where the training file began with {' and '.join(own)}")
