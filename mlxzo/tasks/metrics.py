"""Metrics: how good one answer is, from 0 to 1, as a function of the answer and the answers that count as right."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(answer: str, gold: Sequence[str]) -> float:
    """1 where the candidate that was chosen is one of the right ones."""
    return float(answer in gold)


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 where the answer is one of the gold answers, both normalised (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return float(any(normalised(answer) == normalised(right) for right in gold))


def f1(answer: str, gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the answer's words, normalised; of the gold answer that suits it best
    (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return max((_word_f1(normalised(answer).split(), normalised(right).split()) for right in gold), default=0.0)


def normalised(text: str) -> str:
    """Lower case, without punctuation and the articles a, an, the, white space made single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(answer: list[str], right: list[str]) -> float:
    common = (Counter(answer) & Counter(right)).total()
    return 2 * common / (len(answer) + len(right)) if common else 0.0


METRICS: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "exact_match": exact_match}
"""By name. `loss`, the metric of completions, is none: it is no function of an answer."""

WRITTEN = ("f1", "exact_match")
"""Metrics of answers that the model writes; for the others it chooses among candidates."""
