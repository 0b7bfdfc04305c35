"""Gauss-Newton systems in the span of a few random directions, from the scores of forward passes (RSGN).

A forward pass returns a score for each candidate of each example, of which a zeroth-order gradient keeps one number.
The differences of all scores along k directions are the Jacobian J of the model in their span, and with it the gradient
b and the Gauss-Newton matrix A of the mean loss there. The step solves a k x k system, and has no learning rate.

Kin: random-subspace Gauss-Newton without derivatives (Cartis and Roberts, arXiv 2206.03371); damping after Marquardt
(1963) and Levenberg (1944). Everything is NumPy float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

# A direction along which no score changes must not make the system singular.
_FLOOR = 1e-12


@dataclass(frozen=True)
class System:
    """The loss near the weights w in the span of k directions: L(w + sum_j a_j z_j) = loss + b.a + a.A a / 2.

    Attributes:
        loss: mean loss at w.
        gradient: b, [k].
        curvature: A, symmetric and positive semidefinite, [k, k].
    """

    loss: float
    gradient: np.ndarray
    curvature: np.ndarray

    def __add__(self, other: System) -> System:
        """The system of the sum of two losses along the same directions."""
        return System(self.loss + other.loss, self.gradient + other.gradient, self.curvature + other.curvature)

    def step(self, damping: float) -> np.ndarray:
        """The coefficients a [k] of the damped step: a = -(A + damping diag A)^-1 b."""
        diagonal = np.diag(self.curvature)
        used = diagonal > _FLOOR * max(diagonal.max(), _FLOOR)
        step = np.zeros(len(self.gradient))
        if used.any():
            damped = self.curvature[np.ix_(used, used)] + np.diag((damping + _FLOOR) * diagonal[used])
            step[used] = -np.linalg.solve(damped, self.gradient[used])
        return step

    def along(self, step: np.ndarray) -> float:
        """The curvature along a step a [k]: a.A a."""
        return float(step @ self.curvature @ step)

    def decrease(self, step: np.ndarray) -> float:
        """The decrease of the loss that the quadratic predicts for a step [k]."""
        return float(-(self.gradient @ step)) - 0.5 * self.along(step)


@dataclass(frozen=True)
class Part:
    """Scores of some examples of a batch; the score of a candidate that an example does not have is -inf.

    Attributes:
        clean: scores at w, float64 [B, C].
        sides: scores at w + eps z_j, [k, B, C].
        target: the right candidate of each example, int [B].
        tokens: number of tokens of each example's answer, [B]; of use where it is the only candidate.
    """

    clean: np.ndarray
    sides: np.ndarray
    target: np.ndarray
    tokens: np.ndarray


def make_system(parts: Iterable[Part], eps: float) -> System:
    """The system of a batch.

    Of several candidates the loss is the cross-entropy over their scores, and A its Gauss-Newton matrix. Of a single
    one it is the mean negative log-likelihood of its T tokens. The other tokens' scores are unknown, so A is the
    empirical Fisher matrix: T times the product of the example's derivatives, which for independent tokens is on
    average the mean of the products of each token's.
    """
    losses, gradient, curvature, count = 0.0, 0.0, 0.0, 0
    for part in parts:
        add = _of_single if part.clean.shape[1] == 1 else _of_several
        loss, b, a = add(part, eps)
        losses, gradient, curvature, count = losses + loss, gradient + b, curvature + a, count + len(part.target)
    return System(losses / count, np.asarray(gradient) / count, np.asarray(curvature) / count)


def _of_single(part: Part, eps: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Sums of loss, gradient and curvature over examples with one candidate each."""
    slopes = (part.clean - part.sides)[:, :, 0] / eps
    weighted = slopes * np.sqrt(part.tokens)
    return -float(part.clean.sum()), slopes.sum(axis=1), _products("kb,lb->kl", weighted, weighted)


def _of_several(part: Part, eps: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Sums of loss, gradient and curvature over examples with several candidates."""
    clean, rows = part.clean, np.arange(len(part.target))
    top = clean.max(axis=1, keepdims=True)
    weights = np.exp(clean - top)
    total = weights.sum(axis=1, keepdims=True)
    chance = weights / total
    loss = float((np.log(total) + top).sum() - clean[rows, part.target].sum())
    with np.errstate(invalid="ignore"):
        jacobian = np.where(np.isneginf(clean), 0.0, (part.sides - clean) / eps)
    residual = chance.copy()
    residual[rows, part.target] -= 1.0
    # Centred by the mean under p, so that J^T (diag p - p p^T) J is a sum of squares.
    centred = (jacobian - (jacobian * chance).sum(axis=2, keepdims=True)) * np.sqrt(chance)
    return loss, _products("kbc,bc->k", jacobian, residual), _products("kbc,lbc->kl", centred, centred)


def _products(subscripts: str, *arrays: np.ndarray) -> np.ndarray:
    """Sums of products in one order, whatever the number of threads: not by BLAS."""
    return np.einsum(subscripts, *arrays, optimize=False)


def odd_part(clean: np.ndarray, after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Scores at w + eps z_j without what is even in eps, [k, B, C]: `sides` of a `Part` with two-sided differences.

    Args:
        clean: scores at w, float64 [B, C].
        after, before: scores at w + eps z_j and at w - eps z_j, [k, B, C].
    """
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(clean), clean, clean + (after - before) / 2.0)


def make_prior(offset: np.ndarray, directions: np.ndarray, precision: float) -> System:
    """The system of a Gaussian prior around the start: precision |w - start|^2 / 2, along k directions.

    Args:
        offset: w - start, float64 [d].
        directions: z_j, float64 [k, d].
        precision: one over the variance, in the units of a mean loss.
    """
    loss = 0.5 * precision * float(_products("d,d->", offset, offset))
    gradient = precision * _products("kd,d->k", directions, offset)
    return System(loss, gradient, precision * _products("kd,ld->kl", directions, directions))


@dataclass
class Damping:
    """Levenberg-Marquardt damping in two parts, each of which adapts to what the last moves brought.

    Attributes:
        trust: for the error of the quadratic model, which the batch of the step itself shows (Marquardt 1963).
        noise: for the difference between the batch and all other examples, which only another batch shows; 0 where the
            batch is the whole training set.
    """

    trust: float = 1.0
    noise: float = 3.0

    # Bounds of the damping. At the lower one it no longer matters, at the upper one a move changes nothing.
    _LEAST: ClassVar[float] = 1e-6
    _MOST: ClassVar[float] = 1e6
    # On another batch a single move says little: its noise is many times its effect.
    _RATE: ClassVar[float] = 0.1

    @property
    def value(self) -> float:
        """The damping of the next move."""
        return self.trust + self.noise

    def tried(self, actual: float, predicted: float) -> None:
        """Adapts to a move on the batch that the system was made of.

        Args:
            actual, predicted: the decrease of the loss.
        """
        ratio = actual / predicted if predicted > 0.0 else 0.0
        if not ratio >= 0.25:
            self.trust = min(4.0 * self.trust, self._MOST)
        elif ratio > 0.75:
            self.trust = max(self.trust / 3.0, self._LEAST)

    def judged(self, actual: float, curvature: float) -> None:
        """Adapts to a move on examples that the system was not made of.

        Along a move a the loss of all examples is L - g s + s^2 a.A a / 2, with s = 1 for the move itself. The decrease
        found on other examples gives an unbiased estimate of g, and g / a.A a is the best s. The damping follows it in
        small steps (stochastic approximation, Robbins and Monro 1951): it settles where moves are neither too long nor
        too short on average.

        Args:
            actual: the decrease of the loss of the other examples.
            curvature: a.A a.
        """
        if curvature > 0.0:
            best = (actual + 0.5 * curvature) / curvature
            change = min(1.0, max(-1.0, best - 1.0)) if math.isfinite(best) else -1.0
            self.noise = min(max((1.0 + self.noise) * math.exp(-self._RATE * change) - 1.0, 0.01), self._MOST)
