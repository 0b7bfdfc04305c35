"""BoolQ: yes/no questions about a passage (Clark et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Example, HubSource, Task, require, require_text, shown


class BoolQ(Task):
    """Rows: {"question": text, "passage": text, "answer": true or false}; prompt of Malladi et al. 2023."""

    name = "boolq"
    description = "yes/no questions about a passage (BoolQ)"
    template = "{passage} {question}?\n"
    labels = ("Yes", "No")
    fields = ("question", "passage", "answer")
    hub = HubSource(
        repo="google/boolq",
        revision="35b264d03638db9f4ce671b711558bf7ff0f80d5",
        train="data/train-00000-of-00001.parquet",
        heldout="data/validation-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {
        "question": "do bees sleep",
        "passage": "Honey bees rest at night, often holding on to one another by the legs.",
        "answer": True,
    }

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        passage = require_text(row, "passage").strip()
        question = require_text(row, "question").strip()
        answer = require(row, "answer")
        if not isinstance(answer, bool):
            raise ValueError(f"the answer {shown(answer)} is not true or false")
        question = question[0].upper() + question[1:]
        if not question.endswith("?"):
            question += "?"
        # The prompt ends in a newline, so the candidates carry no space of their own.
        return Example(f"{passage} {question}\n", self.labels, 0 if answer else 1)
