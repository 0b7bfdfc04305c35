"""Objectives of MeZO: the loss, or functions without a gradient: metrics of answers, or the scores of a user's judge.

Malladi et al. 2023 (arXiv 2305.17333, section 3.3) optimise accuracy and F1 so. A share of right answers changes in
steps of one example: on a small batch both sides of a direction often give the same value. Such ties are counted and
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..tasks.base import Example
from ..tasks.metrics import METRICS
from ..zo.perturb import View
from .batching import Batch
from .reward import Answer, Judge, with_failures_lowest
from .scoring import Measure, example_losses

OfAnswers = Callable[[Batch, View], np.ndarray]
"""A value per example, lower is better: float64 [B] from the answers generated under a view of the weights."""

Judgement = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
"""A score of the answer to each example; higher is better."""


def wrong_answers(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 where the right candidate does not score highest, else 0; the mean is 1 - accuracy."""
    return (scores.argmax(axis=1) != target).astype(np.float64)


def expected_errors(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 less the probability of the right candidate among all; the mean is 1 - the expected accuracy of answers drawn
    from the model's probabilities.

    It is close to the accuracy where the model is confident, has no ties, and unlike the loss it is bounded, so that
    a few examples cannot dominate it.
    """
    return -np.expm1(-example_losses(scores, target))


SCORE_OBJECTIVES: dict[str, Measure] = {
    "loss": example_losses,
    "accuracy": wrong_answers,
    "soft-accuracy": expected_errors,
}
"""Objectives of candidates' scores, by name."""


def by_metric(metric: str) -> Judgement:
    """Judgement by a metric of generated answers (see `tasks.metrics`)."""
    measure = METRICS[metric]
    return lambda examples, answers: [measure(a, e.gold) for e, a in zip(examples, answers, strict=True)]


def by_judge(judge: Judge) -> Judgement:
    """Judgement by a judge; answers that it fails on count as its lowest score."""
    return lambda examples, answers: with_failures_lowest(
        judge.scores([Answer(e.prompt, a, e.gold, e.fields) for e, a in zip(examples, answers, strict=True)])
    )


def shortfall(write: Callable[[Sequence[Example], View], Sequence[str]], judge: Judgement) -> OfAnswers:
    """1 less the judgement of the answers that `write` generates under a view."""

    def values(batch: Batch, view: View) -> np.ndarray:
        examples = [encoded.source for encoded in batch.examples if encoded.source is not None]
        return 1.0 - np.array(judge(examples, write(examples, view)), np.float64)

    return values
