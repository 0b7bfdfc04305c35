"""reviews: short customer reviews written for mlxzo; travels with the package and needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Example, Task, labelled, require_text, shown
from .template import Template

TEMPLATE = "{text}\nThe customer is"
WORDS = {"negative": "unhappy", "positive": "happy"}
_TEMPLATE = Template(TEMPLATE)


class Reviews(Task):
    """Rows: {"text": text, "label": "negative" or "positive"}."""

    name = "reviews"
    description = "short customer reviews, negative or positive (embedded, needs no network)"
    template = TEMPLATE
    labels = tuple(WORDS.values())
    fields = ("text", "label")
    embedded = "reviews"
    sample_row: ClassVar = {
        "text": "The zip broke on the second day and nobody answered my mails.",
        "label": "negative",
    }

    def example_from_row(self, row: Mapping[str, Any]) -> Example:
        text = require_text(row, "text").strip()
        label = require_text(row, "label")
        if label not in WORDS:
            raise ValueError(f"the label {shown(label)} is not one of {', '.join(WORDS)}")
        return labelled(_TEMPLATE.render({"text": text}), self.labels, list(WORDS).index(label))
