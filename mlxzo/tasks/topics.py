"""Topics of short texts: the embedded messages to a support desk, written for mlxzo, TREC, AG News and SMS spam.

The prompts of TREC and AG News are those of Zhao et al. 2021.
"""

from __future__ import annotations

from typing import ClassVar

from .base import HubSource
from .classification import Classification, Label


class SupportDesk(Classification):
    """Rows: {"text": text, "label": queue}. Of two matters in a message the main one decides.

    Billing: what was or will be charged, paid or refunded. Shipping: where goods are, when and how they come. Returns:
    goods to send back or exchange. Technical: how to make something work.
    """

    name = "support_desk"
    description = "messages to a shop's support desk, by the queue that answers them (embedded, needs no network)"
    template = "{text}\nThis message is about"
    classes = tuple(Label(queue, queue) for queue in ("billing", "shipping", "returns", "technical"))
    embedded = "support_desk"
    sample_row: ClassVar = {
        "text": "I paid for the lamp on Monday and the parcel came today, but why did you charge my card twice?",
        "label": "billing",
    }


class Trec(Classification):
    """Rows: {"text": text, "coarse_label": 0 to 5} (Li and Roth 2002)."""

    name = "trec"
    description = "what kind of answer a question asks for (TREC)"
    template = (
        "Classify the questions based on whether their answer type is a Number, Location, Person, Description, "
        "Entity, or Abbreviation.\n\nQuestion: {text}\nAnswer Type:"
    )
    classes = (
        Label(0, "Abbreviation", "ABBR"),
        Label(1, "Entity", "ENTY"),
        Label(2, "Description", "DESC"),
        Label(3, "Person", "HUM"),
        Label(4, "Location", "LOC"),
        Label(5, "Number", "NUM"),
    )
    label_field = "coarse_label"
    hub = HubSource(
        repo="CogComp/trec",
        # The hub's own conversion to parquet, branch refs/convert/parquet.
        revision="65752bf53af25bc935a0dce92fb5b6c930728450",
        train="default/train/0000.parquet",
        heldout="default/test/0000.parquet",
    )
    sample_row: ClassVar = {"text": "How many strings has a cello ?", "coarse_label": 5}


class AgNews(Classification):
    """Rows: {"text": text, "label": 0 to 3} (Zhang et al. 2015)."""

    name = "ag_news"
    description = "the section that a news item belongs to (AG News)"
    template = (
        "Classify the news articles into the categories of World, Sports, Business, and Technology.\n\n"
        "Article: {text}\nAnswer:"
    )
    classes = (
        Label(0, "World", "world"),
        Label(1, "Sports", "sports"),
        Label(2, "Business", "business"),
        Label(3, "Technology", "science and technology"),
    )
    hub = HubSource(
        repo="fancyzhx/ag_news",
        revision="eb185aade064a813bc0b7f42de02595523103ca4",
        train="data/train-00000-of-00001.parquet",
        heldout="data/test-00000-of-00001.parquet",
    )
    sample_row: ClassVar = {"text": "Grain prices fell for a third day as rain reached the plains.", "label": 2}


class SmsSpam(Classification):
    """Rows: {"sms": text, "label": 0 or 1} (Almeida et al. 2011)."""

    name = "sms_spam"
    description = "whether a text message is spam (SMS Spam Collection)"
    template = "Message: {sms}\nIs this message spam? Yes or No?\n"
    classes = (Label(0, "No", "ham"), Label(1, "Yes", "spam"))
    hub = HubSource(
        repo="ucirvine/sms_spam",
        revision="cae486f927c250fe1d4a5b55f11357964ed1646c",
        train="plain_text/train-00000-of-00001.parquet",
        heldout=None,
    )
    sample_row: ClassVar = {"sms": "You have WON a cruise! Call now to claim.", "label": 1}
