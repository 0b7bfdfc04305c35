"""Metrics of answers: scores from 0 to 1 of one answer against the gold answers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(answer: str, gold: Sequence[str]) -> float:
    """1 if the chosen candidate is one of the right ones, else 0."""
    return float(answer in gold)


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 if the answer equals a gold answer, both normalised, else 0 (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return float(any(normalised(answer) == normalised(right) for right in gold))


def f1(answer: str, gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the answer's normalised words against the closest gold answer
    (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return max((_word_f1(normalised(answer).split(), normalised(right).split()) for right in gold), default=0.0)


def normalised(text: str) -> str:
    """The text in lower case and NFC, without punctuation and articles, with single spaces."""
    text = unicodedata.normalize("NFC", text.lower())
    return " ".join(_ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split())


def _word_f1(answer: list[str], right: list[str]) -> float:
    common = (Counter(answer) & Counter(right)).total()
    return 2 * common / (len(answer) + len(right)) if common else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {"accuracy": accuracy, "f1": f1, "exact_match": exact_match}
"""By name (see `core.metrics`). The loss of completions is no function of an answer."""

WRITTEN = ("f1", "exact_match")
"""Metrics of generated answers; for the others the model chooses among candidates."""
