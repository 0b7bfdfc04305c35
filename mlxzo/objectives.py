"""What a step of MeZO minimises: the loss, or a measure that has no gradient, read off the same scores.

Malladi et al. 2023 (arXiv 2305.17333, section 3.3) optimise accuracy and F1 so. A share of right answers moves in jumps
of one example: on a small batch both sides of a direction often score alike, and the step goes nowhere. Such steps are
counted and reported.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .scoring import example_losses

Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A value an example, the lower the better: float64 [B] from candidates' scores [B, C] and targets int [B]."""


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


OBJECTIVES: dict[str, Objective] = {"loss": example_losses, "accuracy": wrong_answers, "soft-accuracy": doubts}
