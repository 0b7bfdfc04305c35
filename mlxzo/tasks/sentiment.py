"""Sentiment: the embedded reviews, written for mlxzo, and SST-2 (Socher et al. 2013)."""

from __future__ import annotations

from typing import ClassVar

from .base import HubSource
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


class Sst2(Classification):
    """Rows: {"sentence": text, "label": 0 or 1}; prompt of Malladi et al. 2023."""

    name = "sst2"
    description = "sentiment of sentences from film reviews (SST-2)"
    template = "{sentence} It was"
    classes = (Label(0, "terrible", "negative"), Label(1, "great", "positive"))
    hub = HubSource(
        repo="stanfordnlp/sst2",
        revision="8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
        train="data/train-00000-of-00001.parquet",
        heldout="data/validation-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {"sentence": "a warm , funny and quietly moving film .", "label": 1}
