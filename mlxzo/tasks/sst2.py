"""SST-2: the sentiment of a sentence from a film review (Socher et al. 2013)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Example, HubSource, Task, labelled, require, require_text, shown


class Sst2(Task):
    """Rows: {"sentence": text, "label": 0 (negative) or 1 (positive)}; prompt of Malladi et al. 2023."""

    name = "sst2"
    description = "sentiment of sentences from film reviews (SST-2)"
    template = "{sentence} It was"
    labels = ("terrible", "great")
    fields = ("sentence", "label")
    hub = HubSource(
        repo="stanfordnlp/sst2",
        revision="8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
        train="data/train-00000-of-00001.parquet",
        heldout="data/validation-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {"sentence": "a warm , funny and quietly moving film .", "label": 1}

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        sentence = require_text(row, "sentence").strip()
        label = require(row, "label")
        # bool is an int in Python, and -1 marks the public test rows, whose labels are withheld.
        if type(label) is not int or label not in (0, 1):
            raise ValueError(f"the label {shown(label)} is not 0 (negative) or 1 (positive)")
        return labelled(f"{sentence} It was", self.labels, label)
