"""Gradient estimators: the points whose losses they need, and the derivatives that follow from these losses.

A method evaluates the points as it likes: in one process or several, in any order.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .perturb import Direction

Point = tuple[Direction | None, float]
"""w + eps * z as (z, eps); (None, 0.0) is w itself."""


@dataclass(frozen=True)
class GradientEstimate:
    """Loss of a batch, and one derivative per direction, from which an update rule makes a step."""

    loss: float
    derivatives: tuple[float, ...]


class Estimator(Protocol):
    """A zeroth-order gradient estimator."""

    def points(self, directions: Sequence[Direction], eps: float) -> list[Point]:
        """Points at which the mean loss of the batch is needed."""
        ...

    def combine(self, losses: Sequence[float], eps: float) -> GradientEstimate:
        """Makes the estimate of the losses at `points`, given in the order of the points."""
        ...


class Spsa:
    """Two-sided differences: g_i = (L(w + eps z_i) - L(w - eps z_i)) / (2 eps), two forward passes per direction.

    Malladi et al. 2023 (arXiv 2305.17333), Definition 1. The loss is the mean over all points.
    """

    def points(self, directions: Sequence[Direction], eps: float) -> list[Point]:
        return [(direction, signed) for direction in directions for signed in (eps, -eps)]

    def combine(self, losses: Sequence[float], eps: float) -> GradientEstimate:
        differences = (plus - minus for plus, minus in zip(losses[::2], losses[1::2], strict=True))
        return GradientEstimate(statistics.fmean(losses), tuple(difference / (2.0 * eps) for difference in differences))


ESTIMATORS: dict[str, Estimator] = {"spsa": Spsa()}
