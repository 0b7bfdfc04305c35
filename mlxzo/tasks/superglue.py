"""SuperGLUE (Wang et al. 2019): the tasks that ask for a label word, with the prompts of Malladi et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .base import HubSource
from .classification import Classification, Label


def superglue(config: str) -> HubSource:
    """The hub files of one of its tasks."""
    return HubSource(
        repo="aps/super_glue",
        revision="3de24cf8022e94f4ee4b9d55a6f539891524d646",
        train=f"{config}/train-00000-of-00001.parquet",
        heldout=f"{config}/validation-00000-of-00001.parquet",
    )


class Rte(Classification):
    """Rows: {"premise": text, "hypothesis": text, "label": 0 or 1}."""

    name = "rte"
    description = "whether a text entails a sentence (RTE)"
    template = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'
    classes = (Label(0, "Yes", "entailment"), Label(1, "No", "no entailment"))
    hub = superglue("rte")
    sample_row: ClassVar = {
        "premise": "The ferry sank in the harbour on Tuesday; everybody aboard swam ashore.",
        "hypothesis": "Nobody died when the ferry sank.",
        "label": 0,
    }


class Cb(Classification):
    """Rows: {"premise": text, "hypothesis": text, "label": 0, 1 or 2}."""

    name = "cb"
    description = "how far a speaker is committed to a clause (CommitmentBank)"
    template = 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n'
    classes = (Label(0, "Yes", "entailment"), Label(1, "No", "contradiction"), Label(2, "Maybe", "neutral"))
    hub = superglue("cb")
    sample_row: ClassVar = {
        "premise": "I never thought that the bridge would hold.",
        "hypothesis": "the bridge would hold",
        "label": 2,
    }


class Wsc(Classification):
    """Rows: {"text": text, "span1_text": text, "span2_text": text, "label": 0 or 1}."""

    name = "wsc"
    description = "what a pronoun refers to (Winograd schema challenge)"
    template = '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n'
    classes = (Label(0, "No", "it does not"), Label(1, "Yes", "it does"))
    hub = superglue("wsc.fixed")
    sample_row: ClassVar = {
        "text": "The vase fell on the shelf because it was loose.",
        "span1_text": "The vase",
        "span2_text": "it",
        "label": 0,
    }

    def prompt(self, values: Mapping[str, str]) -> str:
        return super().prompt({**values, "span2_text": values["span2_text"].lower()})


class Wic(Classification):
    """Rows: {"word": text, "sentence1": text, "sentence2": text, "label": 0 or 1}."""

    name = "wic"
    description = "whether a word means the same in two sentences (word in context)"
    template = (
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n'
    )
    classes = (Label(0, "No", "another"), Label(1, "Yes", "the same"))
    hub = superglue("wic")
    sample_row: ClassVar = {
        "word": "bank",
        "sentence1": "She sat on the bank of the river.",
        "sentence2": "The bank lent him money.",
        "label": 0,
    }


class MultiRc(Classification):
    """Rows: {"paragraph": text, "question": text, "answer": text, "label": 0 or 1}, one row an answer."""

    name = "multirc"
    description = "whether an answer to a question about a paragraph is right (MultiRC)"
    template = '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n'
    classes = (Label(0, "No", "wrong"), Label(1, "Yes", "right"))
    hub = superglue("multirc")
    sample_row: ClassVar = {
        "paragraph": "Ada bought flour, eggs and sugar. She forgot the milk.",
        "question": "What did Ada forget?",
        "answer": "milk",
        "label": 1,
    }


class BoolQ(Classification):
    """Rows: {"question": text, "passage": text, "answer": true or false} (Clark et al. 2019)."""

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
