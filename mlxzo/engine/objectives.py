"""What a step of MeZO minimises: the loss, or what has no gradient: right answers, or what a judge of the user's says.

Malladi et al. 2023 (arXiv 2305.17333, section 3.3) optimise accuracy and F1 so. A share of right answers moves in jumps
of one example: on a small batch both sides of a direction often score alike, and the step goes nowhere. Such steps are
counted and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..tasks.base import Example
from ..tasks.metrics import METRICS
from ..zo.perturb import View
from .batching import Batch
from .scoring import example_losses

OfScores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A value an example, the lower the better: float64 [B] from candidates' scores [B, C] and targets int [B]."""

OfAnswers = Callable[[Batch, View], np.ndarray]
"""A value an example, the lower the better: float64 [B] from what the model writes under a view of the weights."""

Judgement = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
"""How good the answers to some examples are; higher is better."""


def wrong_answers(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 where another candidate than the right one scores highest, else 0: their mean is 1 - accuracy."""
    return (scores.argmax(axis=1) != target).astype(np.float64)


def doubts(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 less the probability of the right candidate among all: their mean is 1 - the accuracy to be expected of an
    answer drawn by the model's own probabilities.

    It follows accuracy closely where the model is sure of itself, is never the same on two sides, and unlike the loss
    it cannot be swamped by a few examples that are very wrong.
    """
    return -np.expm1(-example_losses(scores, target))


SCORE_OBJECTIVES: dict[str, OfScores] = {"loss": example_losses, "accuracy": wrong_answers, "soft-accuracy": doubts}
"""By name, those that look at the scores of an example's candidates."""


def judged_by(metric: str) -> Judgement:
    """The judgement of a metric of written answers (see `tasks.metrics`)."""
    measure = METRICS[metric]
    return lambda examples, answers: [measure(a, e.gold) for e, a in zip(examples, answers, strict=True)]


def shortfall(write: Callable[[Sequence[Example], View], Sequence[str]], judge: Judgement) -> OfAnswers:
    """1 less the judgement of the answers that `write` gives under a view."""

    def values(batch: Batch, view: View) -> np.ndarray:
        examples = [encoded.source for encoded in batch.examples]
        return 1.0 - np.array(judge(examples, write(examples, view)), np.float64)

    return values
