"""Questions with generated answers; SQuAD and DROP have the prompts of Malladi et al. 2023.

Training uses the first gold answer and a newline, which ends it; answers of own data are followed by an end token as
well. Evaluation generates an answer up to the end of the line and compares it with all gold answers (Rajpurkar et al.
2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Example, HubSource, Task, append, kind_of, require, require_text, require_texts
from .template import Template


class Questions(Task):
    """Rows: the fields of the template as text, and gold answers."""

    metric = "f1"
    more_metrics = ("exact_match",)
    ends_text: bool = True
    """See `Example.ends_text`."""

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        gold = self.gold_answers(row)
        prompt = rendered(self.template, row)
        answer = append(prompt, gold[0])[1] + "\n"
        return Example(prompt, (answer,), 0, answers=gold, ends_text=self.ends_text)

    def gold_answers(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The gold answers of a row, at least one.

        Raises:
            ValueError: it has none; the message is a sentence about the row.
        """
        raise NotImplementedError


def rendered(template: str, row: Mapping[str, Any]) -> str:
    """A template with the fields of a row.

    Raises:
        ValueError: a field is missing, or no text.
    """
    parsed = Template(template)
    return parsed.render({name: require_text(row, name).strip() for name in parsed.fields})


class _Held(Questions):
    """Rows: the fields of the template as text, and an object with a list of gold answers."""

    # As in the paper, the end of the line alone ends an answer.
    ends_text = False
    answers_field: str
    answers_key: str

    def gold_answers(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        held = require(row, self.answers_field)
        if not isinstance(held, Mapping):
            raise ValueError(f"{self.answers_field!r} must be an object, not {kind_of(held)}")
        return require_texts(held, self.answers_key)


class Squad(_Held):
    """Rows: {"title": text, "context": text, "question": text, "answers": {"text": [text, ...]}}."""

    name = "squad"
    description = "questions answered by words of a paragraph (SQuAD)"
    template = "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"
    fields = ("title", "context", "question", "answers")
    answers_field, answers_key = "answers", "text"
    hub = HubSource(
        repo="rajpurkar/squad",
        revision="7b6d24c440a36b6815f21b70d25016731768db1f",
        train="plain_text/train-00000-of-00001.parquet",
        heldout="plain_text/validation-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {
        "title": "Lighthouse",
        "context": "The lighthouse was built in 1869 and burned whale oil at first.",
        "question": "What did the lighthouse burn at first?",
        "answers": {"text": ["whale oil", "oil"], "answer_start": [47, 53]},
    }


class Drop(_Held):
    """Rows: {"passage": text, "question": text, "answers_spans": {"spans": [text, ...]}}.

    As in Malladi et al. 2023, each of several spans is a right answer by itself.
    """

    name = "drop"
    description = "questions about a passage that take counting and comparing (DROP)"
    template = "Passage: {passage}\nQuestion: {question}\nAnswer:"
    fields = ("passage", "question", "answers_spans")
    answers_field, answers_key = "answers_spans", "spans"
    hub = HubSource(
        repo="ucinlp/drop",
        revision="95cda593fae71b60b5b19f82de3fcf3298c1239c",
        train="data/train-00000-of-00001.parquet",
        heldout="data/validation-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {
        "passage": "The home side kicked two goals in the first half and three in the second.",
        "question": "How many goals did the home side kick?",
        "answers_spans": {"spans": ["5"], "types": ["number"]},
    }
