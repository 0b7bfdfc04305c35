"""What a task is: a prompt, the candidates that may follow it, and how a row of data becomes the two.

A task never sees a tokenizer: it works on text. A candidate is exactly the text appended to the prompt, so it
carries its own leading space (or the prompt ends in a newline and it carries none).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from .metrics import WRITTEN
from .template import Template


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One labelled prompt. A completion has exactly one candidate, and target 0; a text without a prompt is the
    completion of an empty one."""

    prompt: str
    candidates: tuple[str, ...]
    target: int | None
    """Index of the candidate that is trained for; None where the answer is not known."""
    answers: tuple[str, ...] = ()
    """All answers that count as right, where that is not just the target: several candidates, or the gold answers of a
    question that the model answers in its own words."""
    messages: tuple[Message, ...] = ()
    """A conversation that stands in place of the prompt, to be put into the words of the model's own chat template."""

    @property
    def written(self) -> bool:
        """Whether the model answers in its own words, to be compared with the gold answers."""
        return bool(self.answers) and len(self.candidates) == 1

    @property
    def gold(self) -> tuple[str, ...]:
        """The answers that count as right."""
        return self.answers or (() if self.target is None else (self.candidates[self.target],))


@dataclass(frozen=True)
class HubSource:
    """Parquet files of a dataset on the Hugging Face hub, at a pinned commit.

    `train` is divided into training and validation rows; `heldout`, the public validation split, is the test
    split, because most public test splits carry no labels. Without one (None), test rows are taken from `train` too.
    """

    repo: str
    revision: str
    train: str
    heldout: str | None


class Task:
    """Base of all tasks. A subclass sets the class attributes and writes `example_from_row`."""

    name: str = ""
    description: str = ""
    metric: str = "accuracy"
    """`accuracy` where candidates are scored against each other, `f1` or `exact_match` where the model writes its
    answer, `loss` for completions that have no one right answer."""
    more_metrics: tuple[str, ...] = ()
    """Metrics of the same answers that are reported beside it."""
    labels: tuple[str, ...] = ()
    """The label words, in the order of the candidates; () for completions."""
    template: str = ""
    """The prompt as shown to users, fields in braces."""
    fields: tuple[str, ...] = ()
    """Names of the fields a row must have, in the public dataset's own words."""
    learns_the_answer: bool = False
    """Whether training looks at the right candidate's tokens alone, not at all that there are to choose among."""
    hub: HubSource | None = None
    embedded: str | None = None
    """Folder under `mlxzo/tasks/data` with the task's own rows; None where the rows come from elsewhere."""
    sample_row: ClassVar[Mapping[str, Any] | None] = None
    """A made-up row that shows what a prompt looks like."""

    @property
    def writes(self) -> bool:
        """Whether the model answers in its own words, which ends with a line, rather than choose among candidates."""
        return self.metric in WRITTEN

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        """ValueError, with a sentence about the row, where a field is missing or of the wrong kind."""
        raise NotImplementedError

    def example_prompt(self) -> str:
        """A prompt as the model sees it; fields stand in angle brackets where the task has no sample row."""
        if self.sample_row is not None:
            return self.example_from_row(self.sample_row).prompt
        template = Template(self.template)
        return template.render({name: f"<{name}>" for name in template.fields})

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> Task:
        """The task as the training rows make it: own data names its labels there, most tasks stay.

        ValueError, with a sentence about the rows as a whole, where they make no task.
        """
        return self


@dataclass(frozen=True)
class TaskData:
    """The rows a run uses, after sampling."""

    task: Task
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    source: str
    """`embedded`, `folder NAME` or `hub REPO`."""
    sha256: str
    """Of the examples used, in the order used: the same rows give the same hash wherever the files lie."""

    def learned(self, objective: str) -> tuple[Example, ...]:
        """The training examples as a run with this objective (an option) looks at them."""
        if objective != "loss" or not self.task.learns_the_answer:
            return self.train
        return tuple(Example(each.prompt, each.gold[:1], 0, messages=each.messages) for each in self.train)

    @cached_property
    def duplicates_across_splits(self) -> int:
        """How many validation and test examples have a prompt that is also a training prompt."""
        seen = {example.prompt for example in self.train}
        return sum(example.prompt in seen for example in (*self.validation, *self.test))


def labelled(prompt: str, words: Iterable[str], target: int | None) -> Example:
    """The example of a prompt and the label words that may follow it."""
    pairs = [append(prompt, word) for word in words]
    return Example(pairs[0][0], tuple(candidate for _, candidate in pairs), target)


def append(prompt: str, text: str) -> tuple[str, str]:
    """The prompt, and the candidate that puts `text` after it.

    White space at the join is kept as written; where there is none, the candidate begins with one space (but
    not in scripts written without spaces). Spaces that end the prompt move to the candidate, because the
    tokenizers of language models attach a space to the word that follows it.
    """
    bare = prompt.rstrip(" ")
    text = prompt[len(bare) :] + text
    joined = text[:1].isspace() or bare[-1:].isspace() or not bare
    if joined or _unspaced(bare[-1]) or _unspaced(text[0]):
        return bare, text
    return bare, " " + text


def _unspaced(character: str) -> bool:
    """Whether the character is Chinese, Japanese, Yi or a full-width form."""
    return "\u2e80" <= character <= "\ua4cf" or "\uf900" <= character <= "\ufaff" or "\uff00" <= character <= "\uffef"


def require(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field; ValueError naming the fields found where it is missing."""
    if name not in row:
        raise ValueError(f"the field {name!r} is missing; found {field_names(row)}")
    return row[name]


def require_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field, as written; ValueError where it is missing, no text, empty or not encodable."""
    value = require(row, name)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be text, not {kind_of(value)}")
    if not value.strip():
        raise ValueError(f"{name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} holds half of a surrogate pair, which is no character") from None
    return value


def require_texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a field that holds a list of them, each once, without white space around them; ValueError where it
    is missing, no list, empty, or holds anything else."""
    value = require(row, name)
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be a list, not {kind_of(value)}")
    if not value:
        raise ValueError(f"{name!r} is empty")
    return tuple(dict.fromkeys(require_text({name: item}, name).strip() for item in value))


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value short enough for an error message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def field_names(row: Mapping[str, Any], limit: int = 8) -> str:
    """The names of a row's fields for an error message."""
    names = [shown(name)[1:-1] for name in row]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "no fields"
