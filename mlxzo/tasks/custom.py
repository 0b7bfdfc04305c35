"""Own data without a task file: rows to classify, or rows in mlx-lm's formats.

| a row | the objective |
|---|---|
| {"text", "label"} | to choose among the labels of the training rows |
| {"prompt", "completion"} | to write the completion; the prompt is not trained on |
| {"messages": [{"role", "content"}, ...]} | to write the last message, which is the assistant's |
| {"text"} | to write the text, all of it |
| {"prompt"}, or {"messages"} without an answer | what a judge scores best |

The first training row of one of these forms determines the form of the whole folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from ..core.formatting import shown
from .base import Example, Task, append, field_names, label_text, require_text
from .classification import Classification, Label
from .conversations import has_answer, messages_of, prompt_of, readable, tools_of, transcript

TEMPLATE = "{text}\nAnswer:"
_CLASSIFICATION = ("text", "label")
_COMPLETION = ("prompt", "completion")
_CHAT = ("messages",)
_TEXT = ("text",)
_PROMPT = ("prompt",)
_FORMS = "text and label, prompt and completion, messages, text alone or prompt alone"


class CustomTask(Task):
    """Own data before its rows are known: `for_rows` gives one of the tasks below."""

    name = "custom"
    description = 'your own rows, {"text", "label"} or in mlx-lm\'s formats, from a folder'
    template = TEMPLATE
    fields = _CLASSIFICATION

    @property
    def row_form(self) -> str:
        return "name the fields of every row so, or name yours in a task YAML (docs/data.md)"

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> Task:
        rows = list(rows)
        forms = dict.fromkeys(form for row in rows if (form := _form(row)))
        # Among completions, a prompt alone is a row that lacks one.
        form = next((form for form in forms if form != _PROMPT), _PROMPT if forms else None)
        if form == _CLASSIFICATION:
            return OwnLabels(_labels(rows))
        if form in (_PROMPT, _CHAT) and not any(map(has_answer, rows)):
            return OwnPrompts(form)
        tasks = {_COMPLETION: OwnCompletions, _CHAT: OwnChats, _TEXT: OwnTexts}
        # If no row has a form, the task itself reports each line with its problem.
        return tasks[form]() if form else self

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        raise ValueError(f"needs {_FORMS}; found {field_names(row)}")


class OwnLabels(Classification):
    """Rows: {"text": text, "label": text, whole number, true or false}.

    The labels, and the words of the candidates, are those of the training rows, sorted.
    """

    name = "custom"
    description = "your own rows to classify"
    template = TEMPLATE

    def __init__(self, labels: tuple[str, ...]):
        self.classes = tuple(Label(label, label) for label in labels)

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_other_form(row, _CLASSIFICATION)
        return super().example_from_row(row)


class OwnCompletions(Task):
    """Rows: {"prompt": text, "completion": text}, joined by a space if neither has white space there."""

    name = "custom"
    description = "your own prompts and completions"
    metric = "loss"
    template = "{prompt}"
    fields = _COMPLETION

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_other_form(row, _COMPLETION)
        prompt, candidate = append(require_text(row, "prompt"), require_text(row, "completion"))
        return Example(prompt, (candidate,), 0, ends_text=True)


class OwnChats(Task):
    """Rows: {"messages": [{"role": "system", "user", "assistant" or "tool", "content": text}, ...]}, and optionally
    "tools". The last message is the assistant's, and the only one trained on. The model's chat template formats the
    conversation."""

    name = "custom"
    description = "your own conversations"
    metric = "loss"
    template = "{messages}"
    fields = _CHAT

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_other_form(row, _CHAT)
        *before, reply = messages_of(row)
        prompt, own = transcript(before), reply if reply.more else None
        tools = tools_of(row)
        return Example(prompt, (readable(reply),), 0, messages=tuple(before), reply=own, tools=tools, ends_text=True)


class OwnTexts(Task):
    """Rows: {"text": text}, all of which is trained on."""

    name = "custom"
    description = "your own texts"
    metric = "loss"
    template = "{text}"
    fields = _TEXT

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_other_form(row, _TEXT)
        return Example("", (require_text(row, "text"),), 0, ends_text=True)


class OwnPrompts(Task):
    """Rows: {"prompt": text}, or {"messages": [...]} that end before the assistant's answer. A judge scores the answer
    that the model writes."""

    name = "custom"
    description = "your own prompts, whose answers a judge scores"
    metric = "reward"
    has_answers = False

    def __init__(self, form: tuple[str, ...]):
        self.fields = form
        self.template = f"{{{form[0]}}}"
        last = 'end the "messages" of each row with an answer of the assistant'
        self.how_to_answer = last if form == _CHAT else 'add the field "completion" to each row'

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        _refuse_other_form(row, self.fields)
        return prompt_of(row)


def _labels(rows: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """The labels of the training rows, sorted; wrong rows are reported later, by line."""
    found, total = set(), 0
    for row in rows:
        with suppress(KeyError, ValueError):
            found.add(label_text(row["label"]))
            total += 1
    if len(found) == 1 and total == len(rows):
        raise ValueError(f"every row has the label {shown(found.pop())}, and classification needs at least two")
    if len(found) > 20 and len(found) > total / 2:
        raise ValueError(
            f"{len(found)} different labels in {total} rows are no classification; write the rows as prompt and "
            "completion"
        )
    return tuple(sorted(found))


def _form(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The form of a row; None if it has none, or two."""
    found = [form for form in (_CLASSIFICATION, _COMPLETION, _CHAT, _TEXT) if all(name in row for name in form)]
    if _CLASSIFICATION in found:
        found.remove(_TEXT)
    if not found and all(name in row for name in _PROMPT):
        return _PROMPT
    return found[0] if len(found) == 1 else None


def _refuse_other_form(row: Mapping[str, Any], own: tuple[str, ...]) -> None:
    """Raises ValueError if a row has another form than `own`, or two; missing fields are reported later."""
    form = _form(row)
    if form == own or (form is None and not all(name in row for name in own)):
        return
    if form is None:
        raise ValueError(f"has the fields of two forms; needs {_FORMS}")
    if (form, own) in ((_TEXT, _CLASSIFICATION), (_PROMPT, _COMPLETION)):
        return
    raise ValueError(f"has {' and '.join(form)}, where the training file began with {' and '.join(own)}")
