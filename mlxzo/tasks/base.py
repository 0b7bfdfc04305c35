"""Base classes of tasks: a task turns a row of data into a prompt and the candidates that may follow it.

A task works on text, without a tokenizer. A candidate is exactly the text appended to the prompt, so it includes the
leading space (or none, if the prompt ends in a newline).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..core.formatting import shown
from .judges import Reward
from .metrics import WRITTEN
from .template import Template

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Its other fields, such as `tool_calls`, which a chat template may use."""

    def to_dict(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True)
class Origin:
    """The place a row comes from: its file, and its number there from 1, of a `unit` (line or row)."""

    path: Path
    number: int
    unit: str = "line"


@dataclass(frozen=True)
class Example:
    """One labelled prompt. A completion has exactly one candidate, and target 0; a text without a prompt is the
    completion of an empty one. A prompt alone has no candidates, and what the model writes is judged."""

    prompt: str
    candidates: tuple[str, ...]
    target: int | None
    """Index of the candidate to train on; None if the answer is not known."""
    answers: tuple[str, ...] = ()
    """All right answers, if not just the target: several candidates, or the gold answers to a generated one."""
    messages: tuple[Message, ...] = ()
    """A conversation in place of the prompt, to be formatted by the model's chat template."""
    reply: Message | None = field(default=None, hash=False)
    """The message that the only candidate stands for, if a conversation's answer is more than text."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Descriptions of the tools that the model may call, for the chat template."""
    ends_text: bool = False
    """True if the text ends after its only candidate: the model learns to write an end token there."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The fields of its row, for the user's judge; empty where no such judge scores answers."""
    origin: Origin | None = field(default=None, compare=False, repr=False)
    """Where its row comes from, for messages; None for an example that was made."""

    @property
    def written(self) -> bool:
        """True if the model generates its answer, which is compared with the gold answers or judged."""
        return not self.candidates or (bool(self.answers) and len(self.candidates) == 1)

    @property
    def gold(self) -> tuple[str, ...]:
        """The right answers."""
        return self.answers or (() if self.target is None else (self.candidates[self.target],))


@dataclass(frozen=True)
class HubSource:
    """Parquet files of a dataset on the Hugging Face hub, at a pinned commit.

    `train` is divided into training and validation rows. `heldout`, the public validation split, is the test split,
    because most public test splits have no labels. Without one (None), test rows are taken from `train` too.
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
    """`accuracy` of choices among candidates, `f1` or `exact_match` of generated answers, `reward` of answers that a
    judge scores, `loss` of completions without a right answer."""
    more_metrics: tuple[str, ...] = ()
    """Further metrics of the same answers that are reported."""
    labels: tuple[str, ...] = ()
    """Label words, in the order of the candidates; () for completions."""
    template: str = ""
    """The prompt as shown to users, fields in braces."""
    fields: tuple[str, ...] = ()
    """Names of the required fields of a row, as in the public dataset."""
    learns_the_answer: bool = False
    """True if training uses the tokens of the right candidate only, not of all candidates."""
    has_answers: bool = True
    """False if the rows are prompts alone, with no right answer to learn or to compare with."""
    how_to_answer: str = ""
    """How such rows are given right answers, as advice."""
    reward: Reward | None = None
    """The judge of generated answers that the task names; the user's own, if any, is an option of the run."""
    hub: HubSource | None = None
    embedded: str | None = None
    """Folder under `mlxzo/tasks/data` with the task's own rows; None if the rows come from elsewhere."""
    sample_row: ClassVar[Mapping[str, Any] | None] = None
    """An invented row, for showing a prompt."""

    @property
    def writes(self) -> bool:
        """True if the model generates its answer, up to the end of a line, rather than choose among candidates."""
        return self.metric in (*WRITTEN, "reward")

    @property
    def row_form(self) -> str:
        """The form of a row, as advice to those whose rows have another."""
        return "each row needs " + " and ".join(f'"{name}"' for name in self.fields)

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        """The example of a row.

        Raises:
            ValueError: a field is missing or of the wrong kind; the message is a sentence about the row.
        """
        raise NotImplementedError

    def example_prompt(self) -> str:
        """A prompt as the model sees it; without a sample row, with the names of the fields in angle brackets."""
        if self.sample_row is not None:
            return self.example_from_row(self.sample_row).prompt
        template = Template(self.template)
        return template.render({name: f"<{name}>" for name in template.fields})

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> Task:
        """The task for these training rows: own data defines its labels there, most tasks stay the same.

        Raises:
            ValueError: the rows define no task; the message is a sentence about them as a whole.
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
    """Hash of the examples in the order used; it does not depend on the location of the files."""
    remarks: tuple[str, ...] = ()
    """Sentences on how the files were read, where they are not plain."""
    training_rows: int = 0
    """Number of training rows before sampling."""

    def learned(self, objective: str) -> tuple[Example, ...]:
        """The training examples for a run with this objective (an option)."""
        if objective != "loss" or not self.task.learns_the_answer:
            return self.train
        return tuple(replace(each, candidates=each.gold[:1], target=0, answers=()) for each in self.train)

    @cached_property
    def duplicates_across_splits(self) -> int:
        """Number of validation and test examples whose prompt is also a training prompt."""
        seen = {example.prompt for example in self.train}
        return sum(example.prompt in seen for example in (*self.validation, *self.test))


def labelled(prompt: str, words: Iterable[str], target: int | None) -> Example:
    """The example of a prompt and the label words that may follow it."""
    pairs = [append(prompt, word) for word in words]
    return Example(pairs[0][0], tuple(candidate for _, candidate in pairs), target)


def append(prompt: str, text: str) -> tuple[str, str]:
    """The prompt, and the candidate that appends `text` to it.

    White space at the join is kept; if there is none, the candidate begins with one space (except in scripts written
    without spaces). Spaces at the end of the prompt move to the candidate, because the tokenizers of language models
    attach a space to the word that follows it.
    """
    bare = prompt.rstrip(" ")
    text = prompt[len(bare) :] + text
    joined = text[:1].isspace() or bare[-1:].isspace() or not bare
    if joined or _unspaced(bare[-1]) or _unspaced(text[0]):
        return bare, text
    return bare, " " + text


def _unspaced(character: str) -> bool:
    """True for Chinese, Japanese and Yi characters and full-width forms."""
    return "\u2e80" <= character <= "\ua4cf" or "\uf900" <= character <= "\ufaff" or "\uff00" <= character <= "\uffef"


def require(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field.

    Raises:
        ValueError: it is missing; the message has the fields found.
    """
    # A name may be composed of other characters in a file than where it was typed.
    same = (key for key in row if isinstance(key, str) and nfc(key) == nfc(name))
    if name not in row and (name := next(same, name)) not in row:
        raise ValueError(f"the field {shown(name)} is missing; found {field_names(row)}")
    return row[name]


def require_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field.

    Raises:
        ValueError: it is missing, no text, empty or not encodable.
    """
    value = require(row, name)
    if not isinstance(value, str):
        raise ValueError(f"{shown(name)} must be text, not {kind_of(value)}")
    if not value.strip():
        raise ValueError(f"{shown(name)} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{shown(name)} holds half of a surrogate pair, which is no character") from None
    return value


def require_texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The distinct texts of a field with a list, without surrounding white space.

    Raises:
        ValueError: it is missing, no list, empty, or holds anything but texts.
    """
    value = require(row, name)
    if not isinstance(value, list):
        raise ValueError(f"{shown(name)} must be a list, not {kind_of(value)}")
    if not value:
        raise ValueError(f"{shown(name)} is empty")
    return tuple(dict.fromkeys(require_text({name: item}, name).strip() for item in value))


def label_text(value: Any, field: str = "label") -> str:
    """A label as text in NFC: whole numbers in digits (`1.0` too), true and false as in JSON.

    Raises:
        ValueError: the value is of another kind, or empty.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    text = nfc(require_text({field: value}, field).strip())
    # pandas writes whole numbers as decimals where a column has gaps.
    return whole[1] if (whole := _WHOLE.fullmatch(text)) else text


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in words."""
    numbers = {int: "a number", float: "a number"}
    kinds = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    # Parquet has further ones, such as dates.
    return (kinds | numbers).get(type(value), f"a {type(value).__name__}")


def nfc(text: str) -> str:
    """Text in the composed form: one spelling for `é`, which is one character or two."""
    return unicodedata.normalize("NFC", text)


def listed(words: Iterable[str], limit: int = 12) -> str:
    """Words for a message; beyond `limit`, the rest is counted."""
    words = list(words)
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def field_names(row: Mapping[str, Any]) -> str:
    """The names of a row's fields for an error message."""
    return listed((shown(name)[1:-1] for name in row), limit=8) or "no fields"
