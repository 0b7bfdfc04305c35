"""From losses at perturbed weights to derivatives along random directions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .perturb import Direction

Point = tuple[Direction | None, float]
"""w + eps * z as (z, eps); (None, 0.0) is w itself."""

Losses = Callable[[Sequence[Point]], list[float]]
"""Mean losses of the batch at some points."""


@dataclass(frozen=True)
class GradientEstimate:
    """What an estimator found: the batch's loss, and one number a direction that an update rule turns into a step."""

    loss: float
    derivatives: tuple[float, ...]


def spsa(losses: Losses, directions: Sequence[Direction], eps: float) -> GradientEstimate:
    """Two-sided differences: g_i = (L(w + eps z_i) - L(w - eps z_i)) / (2 eps), two forward passes a direction.

    Malladi et al. 2023 (arXiv 2305.17333), Definition 1. The loss is the mean of all sides.
    """
    sides = losses([(direction, signed) for direction in directions for signed in (eps, -eps)])
    differences = (plus - minus for plus, minus in zip(sides[::2], sides[1::2], strict=True))
    return GradientEstimate(statistics.fmean(sides), tuple(difference / (2.0 * eps) for difference in differences))


def fzoo(losses: Losses, directions: Sequence[Direction], eps: float) -> GradientEstimate:
    """One-sided differences that share the loss at w, divided by the losses' standard deviation.

    After FZOO (arXiv 2506.09034): d_i = (L(w + eps z_i) - L(w)) / std_i L(w + eps z_i), one forward pass a direction
    and one for the shared loss, which is the loss reported. The d_i have no unit, and eps cancels in them. At least
    two directions are needed.
    """
    clean, *sides = losses([(None, 0.0), *((direction, eps) for direction in directions)])
    deviation = statistics.stdev(sides)
    if deviation == 0.0:
        return GradientEstimate(clean, (0.0,) * len(sides))
    return GradientEstimate(clean, tuple((side - clean) / deviation for side in sides))


ESTIMATORS = {"spsa": spsa, "fzoo": fzoo}
