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


class AnswerObjective:
    """An objective of the answers that the model generates.

    Args:
        write: generates the answers to some examples under each of some views of the weights.
        judge: scores answers.
    """

    def __init__(self, write: Callable[[Sequence[Example], Sequence[View]], Sequence[Sequence[str]]], judge: Judgement):
        self.write, self.judge = write, judge

    def __call__(self, batch: Batch, view: View) -> np.ndarray:
        """A value per example, lower is better: 1 less the score, float64 [B]."""
        examples = sources(batch)
        return 1.0 - np.array(self.judge(examples, self.write(examples, [view])[0]), np.float64)


def sources(batch: Batch) -> list[Example]:
    """The examples of a batch as text."""
    return [encoded.source for encoded in batch.examples if encoded.source is not None]
