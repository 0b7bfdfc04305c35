"""BoolQ: yes/no questions about a passage (Clark et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .base import HubSource
from .classification import Classification, Label


class BoolQ(Classification):
    """Rows: {"question": text, "passage": text, "answer": true or false}; prompt of Malladi et al. 2023."""

    name = "boolq"
    description = "yes/no questions about a passage (BoolQ)"
    template = "{passage} {question}?\n"
    classes = (Label(True, "Yes"), Label(False, "No"))
    label_field = "answer"
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

    def prompt(self, values: Mapping[str, str]) -> str:
        question = values["question"].removesuffix("?")
        return super().prompt({**values, "question": question[:1].upper() + question[1:]})
