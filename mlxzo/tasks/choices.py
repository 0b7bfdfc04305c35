"""Multiple choice: COPA and ReCoRD of SuperGLUE, whose candidates differ from row to row.

Training uses the right candidate only, as in the scripts of Malladi et al. 2023 (`--train_as_classification False`).
Each candidate is read after its whole passage; an example of ReCoRD has about ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.formatting import shown
from .base import Example, Task, append, label_text, require, require_text, require_texts
from .superglue import superglue

_CONJUNCTIONS = {"cause": "because", "effect": "so"}


class Copa(Task):
    """Rows: {"premise": text, "choice1": text, "choice2": text, "question": "cause" or "effect", "label": 0 or 1}.

    The premise without its full stop, `because` or `so`, and each choice with its first word in lower case.
    """

    name = "copa"
    learns_the_answer = True
    description = "the likelier cause or effect of two (COPA)"
    template = "{premise} so"
    fields = ("premise", "choice1", "choice2", "question", "label")
    hub = superglue("copa")
    sample_row: ClassVar = {
        "premise": "The milk boiled over.",
        "choice1": "I wiped the stove.",
        "choice2": "I fed the cat.",
        "question": "effect",
        "label": 0,
    }

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        premise = require_text(row, "premise").strip().removesuffix(".")
        choices = [_within_sentence(require_text(row, name).strip()) for name in ("choice1", "choice2")]
        question, label = require_text(row, "question"), require(row, "label")
        if question not in _CONJUNCTIONS:
            raise ValueError(f"the question {shown(question)} is not cause or effect")
        if label_text(label) not in ("0", "1"):
            raise ValueError(f"the label {shown(label)} is not 0 (choice1) or 1 (choice2)")
        prompt = f"{premise} {_CONJUNCTIONS[question]}"
        return Example(prompt, tuple(append(prompt, choice)[1] for choice in choices), int(label_text(label)))


class Record(Task):
    """Rows: {"passage": text, "query": text, "entities": [text, ...], "answers": [text, ...]}.

    A candidate is the query with an entity in place of `@placeholder`. Every entity of `answers` is right; the first is
    trained on. The passage's `@highlight` lines become a list, which the query continues.
    """

    name = "record"
    learns_the_answer = True
    description = "which entity of a news article a sentence about it leaves out (ReCoRD)"
    template = "{passage}\n-"
    fields = ("passage", "query", "entities", "answers")
    hub = superglue("record")
    sample_row: ClassVar = {
        "passage": "Lisbon (CNN) The tram of Ana Reis broke down.\n@highlight\nNobody was hurt in Lisbon",
        "query": "@placeholder , who had driven the tram for ten years, walked home.",
        "entities": ["Lisbon", "Ana Reis"],
        "answers": ["Ana Reis"],
    }

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        passage = require_text(row, "passage").strip().replace("@highlight\n", "- ")
        query = require_text(row, "query").strip()
        if "@placeholder" not in query:
            raise ValueError("'query' has no @placeholder")
        answers = require_texts(row, "answers")
        # An answer that is missing from the list of entities is a candidate as well.
        entities = tuple(dict.fromkeys((*require_texts(row, "entities"), *answers)))
        if len(entities) < 2:
            raise ValueError("'entities' names one entity, and a choice needs two")
        candidates = {entity: " " + query.replace("@placeholder", entity) for entity in entities}
        return Example(
            prompt=f"{passage}\n-",
            candidates=tuple(candidates.values()),
            target=entities.index(answers[0]),
            answers=tuple(candidates[answer] for answer in answers),
        )


def _within_sentence(choice: str) -> str:
    """A sentence after a conjunction: its first word in lower case, unless that is `I`."""
    first, space, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest
