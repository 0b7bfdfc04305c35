"""From losses at perturbed weights to derivatives along random directions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .perturb import Direction

LossAt = Callable[[Direction | None, float], float]
"""Mean loss of the batch at w + eps * z; with None for the direction, at w."""


@dataclass(frozen=True)
class Estimate:
    """What an estimator found: the batch's loss, and one number a direction that an update rule turns into a step."""

    loss: float
    derivatives: tuple[float, ...]


def spsa(loss: LossAt, directions: Sequence[Direction], eps: float) -> Estimate:
    """Two-sided differences: g_i = (L(w + eps z_i) - L(w - eps z_i)) / (2 eps), two forward passes a direction.

    Malladi et al. 2023 (arXiv 2305.17333), Definition 1. The loss is the mean of all sides.
    """
    sides = [(loss(direction, eps), loss(direction, -eps)) for direction in directions]
    mean = statistics.fmean(side for pair in sides for side in pair)
    return Estimate(mean, tuple((plus - minus) / (2.0 * eps) for plus, minus in sides))


def fzoo(loss: LossAt, directions: Sequence[Direction], eps: float) -> Estimate:
    """One-sided differences that share the loss at w, divided by the losses' standard deviation.

    After FZOO (arXiv 2506.09034): d_i = (L(w + eps z_i) - L(w)) / std_i L(w + eps z_i), one forward pass a direction
    and one for the shared loss, which is the loss reported. The d_i have no unit, and eps cancels in them. At least
    two directions are needed.
    """
    clean = loss(None, 0.0)
    losses = [loss(direction, eps) for direction in directions]
    deviation = statistics.stdev(losses)
    if deviation == 0.0:
        return Estimate(clean, (0.0,) * len(losses))
    return Estimate(clean, tuple((value - clean) / deviation for value in losses))


ESTIMATORS = {"spsa": spsa, "fzoo": fzoo}
