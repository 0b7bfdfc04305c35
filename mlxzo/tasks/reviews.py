"""reviews: short customer reviews written for mlxzo, included in the package; needs no network."""

from __future__ import annotations

from typing import ClassVar

from .classification import Classification, Label


class Reviews(Classification):
    """Rows: {"text": text, "label": "negative" or "positive"}."""

    name = "reviews"
    description = "short customer reviews, negative or positive (embedded, needs no network)"
    template = "{text}\nThe customer is"
    classes = (Label("negative", "unhappy"), Label("positive", "happy"))
    embedded = "reviews"
    sample_row: ClassVar = {
        "text": "The zip broke on the second day and nobody answered my mails.",
        "label": "negative",
    }
