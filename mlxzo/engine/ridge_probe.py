"""Ridge regression from hidden states to one-hot labels: a linear probe (Alain & Bengio 2016, arXiv 1610.01644).

Pure NumPy in float64. Leave-one-out errors come from one fit: without row i, a linear smoother with the hat matrix H
misses label i by r_i / (1 - h_ii), where r are the residuals of the fit to all rows (Allen 1974; Hastie, Tibshirani &
Friedman, The Elements of Statistical Learning, section 7.10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = tuple((10.0 ** np.arange(-3.0, 4.5, 0.5)).tolist())
"""Ridge strengths to choose from, per training row: where columns have unit variance, from almost no shrinkage of most
directions to almost nothing left of any."""


@dataclass(frozen=True)
class RidgeProbe:
    """A fitted probe.

    Attributes:
        center, scale: mean and standard deviation of each column of the training states, float64 [D].
        weights: float64 [D, C], for centred and scaled states.
        shares: share of each label among the training rows, float64 [C]: the intercept, which is not penalised.
        strength: ridge strength per training row.
        error: mean squared leave-one-out residual, over rows and labels.
    """

    center: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    strength: float
    error: float

    def predict(self, states: np.ndarray) -> np.ndarray:
        """The index of the label with the highest value for each of the states [N, D]: int [N]."""
        scaled = (states.astype(np.float64) - self.center) / self.scale
        return (scaled @ self.weights + self.shares).argmax(axis=1)


def fit(states: np.ndarray, targets: np.ndarray, labels: int, strengths: Sequence[float] = STRENGTHS) -> RidgeProbe:
    """Fits a probe with the strength of the smallest leave-one-out error; of equal ones the first.

    Minimises |Y - 1 b - X W|^2 + N * strength * |W|^2 over W and b, for the centred and scaled states X and one-hot
    labels Y, by a thin singular value decomposition of X. A row that is left out still counts in center and scale.

    Args:
        states: float [N, D], of at least two rows.
        targets: index of each row's label, int [N].
        labels: number of labels C; some may have no row.
        strengths: positive.

    Raises:
        ValueError: fewer than two rows, or a state is not finite.
    """
    rows = len(states)
    if rows < 2 or not np.isfinite(states).all():
        raise ValueError("a probe needs at least two rows of finite states")
    x = states.astype(np.float64)
    center = x.mean(axis=0)
    x -= center
    scale = x.std(axis=0)
    # Float32 values of one size do not differ by so little: such a column is constant, and what is left is rounding.
    scale[scale <= 1e-9 * np.abs(center)] = 1.0
    x /= scale
    y = np.eye(labels)[targets]
    shares = y.mean(axis=0)
    y -= shares
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    squares, projected, leverage = s * s, u.T @ y, u * u
    best_error, best = np.inf, strengths[0]
    for strength in strengths:
        kept = squares / (squares + rows * strength)
        residuals = y - u @ (kept[:, None] * projected)
        # The intercept adds 1 / N to each diagonal element of the hat matrix.
        residuals /= (1.0 - 1.0 / rows - leverage @ kept)[:, None]
        error = float(np.mean(residuals * residuals))
        if error < best_error:
            best_error, best = error, strength
    weights = vt.T @ ((s / (squares + rows * best))[:, None] * projected)
    return RidgeProbe(center, scale, weights, shares, best, best_error)
