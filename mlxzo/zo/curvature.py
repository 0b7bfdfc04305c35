"""Gradient norm, curvature and the best learning rate of groups of parameters, by forward passes alone.

In the units of the scope, weights are w + S u with S the direction scales, and everything here is taken in u: a
direction z has entries of variance 1, g_B = z . grad L_B is the derivative along it on a minibatch B, and
h = z . H z the curvature. A step w -= lr * g_B * z changes the loss, to second order and on average, by

    -lr |grad|^2 + lr^2 / 2 * E[g_B^2 h],

so the rate that gains most is |grad|^2 / E[g_B^2 h], and it gains |grad|^4 / (2 E[g_B^2 h]). All terms are measured:

|grad|^2    as the mean of g_B g_B' for the same direction on two minibatches of different examples. The square of one
            g_B would be larger by the minibatch noise, often several times.
E[g_B^2]    as the mean square itself, noise included: the step makes it too. Minibatches are as large as the run's.
tr(H)       as the mean of h = (L(+) + L(-) - 2 L(0)) / eps^2 (Hutchinson 1990).
E[g_B^2 h]  along the same direction, h and g_B on different minibatches. Where gradient and curvature share
            directions it is up to 3 times E[g_B^2] tr(H), which is why it is not taken to be that product.

Directions are independent, and so are the minibatches of different directions: errors are jackknifed over directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .perturb import Direction

LossOn = Callable[[Direction | None, float, int], float]
"""Mean loss of minibatch number n at w + eps * z; with None for the direction, at w.

Minibatches i * m to i * m + m - 1, those of direction i, share no example."""

# Tolerated effects of terms beyond the second order, and of rounding, as shares of a derivative's or curvature's rms.
# Rounding is random, and part of the standard errors; the other is a bias, which they do not include.
_BIAS = 0.1
_ROUNDING = 0.3
# Directions on which eps is checked, the multiples of eps at which the loss is read, and the most changes of eps.
_CHECKED = 4
_LEVELS = (0.125, 1.0, 2.0)
_ROUNDS = 4
_FARTHEST = 30.0


@dataclass(frozen=True)
class Group:
    """Parameters measured together: names with the lengths of their direction entries, and the initial eps."""

    name: str
    scales: Mapping[str, float]
    eps: float


@dataclass(frozen=True)
class Value:
    """An estimate and its standard error."""

    value: float
    error: float

    @property
    def known(self) -> bool:
        """True if the value is above zero by more than two standard errors."""
        return math.isfinite(self.value) and self.value > 2.0 * self.error


@dataclass(frozen=True)
class Eps:
    """Perturbation scales at which a difference is above rounding noise and below the next order's bias."""

    low: float
    high: float

    def nearest(self, eps: float) -> float:
        """`eps` if it is in the range, else the nearer end; the middle of an empty range."""
        if self.low > self.high:
            return math.sqrt(self.low * self.high)
        return min(max(eps, self.low), self.high)

    def both(self, other: Eps) -> Eps:
        return Eps(max(self.low, other.low), min(self.high, other.high))

    def __contains__(self, eps: float) -> bool:
        return self.low <= eps <= self.high


@dataclass(frozen=True)
class Sensitivity:
    """The measurements of one group, in the units of its scales.

    Attributes:
        gradient: |grad|^2.
        square: E[g^2] at the run's batch size.
        trace: tr(H).
        curvature: E[g^2 h], half of which times lr^2 a step loses; that of an average over `queries` directions.
        ratio: |grad|^2 / tr(H).
        rate: learning rate of plain steps (w -= lr * g * z) that gains most.
        length: the same for steps whose g is divided by its rms: the mean length of a step.
        decrease: expected decrease of the loss in one such step.
        eps: perturbation scale of the measurement.
        eps_range: the scales usable for training steps, which need g alone.
        quadratic: there was an eps at which curvature, too, is above rounding and the loss is quadratic.
    """

    group: str
    gradient: Value
    square: Value
    trace: Value
    curvature: Value
    ratio: Value
    rate: Value
    length: Value
    decrease: Value
    eps: float
    eps_range: Eps
    quadratic: bool

    @property
    def known(self) -> bool:
        """True if the rate is significant."""
        return self.quadratic and self.gradient.known and self.rate.known

    def problem(self) -> str:
        """The reason why the rate is not known; empty if it is."""
        if not (math.isfinite(self.gradient.value) and math.isfinite(self.curvature.value)):
            return "the loss is not a finite number everywhere it was read"
        if not self.quadratic:
            return "no eps is both above rounding and small enough for a quadratic"
        if not self.gradient.known:
            return "|grad|^2 is not above two of its standard errors"
        return "" if self.rate.known else "the curvature is too uncertain to give a rate above two standard errors"


def passes(samples: int, batches: int) -> tuple[int, int]:
    """Forward passes for each group, and those that all groups share, if no eps has to be changed."""
    return samples * 2 * batches + min(_CHECKED, samples) * 2 * len(_LEVELS), samples


def probe(
    loss: LossOn,
    groups: Sequence[Group],
    *,
    seed: int,
    kind: str = "sign",
    samples: int = 24,
    batches: int = 4,
    queries: int = 1,
    on_pass: Callable[[], None] = lambda: None,
) -> list[Sensitivity]:
    """Measures every group along the same `samples` random directions, confined to the group.

    Args:
        loss: see `LossOn`; called in the order of minibatches, so that the caller can cache the current one.
        seed, kind: of the directions, whose step numbers are negative, unlike those of training.
        batches: minibatches per direction, at least 2.
        queries: directions that a step of the run averages over.
        on_pass: called after every forward pass.
    """
    clean: dict[int, float] = {}

    def at(direction: Direction | None, eps: float, number: int) -> float:
        value = loss(direction, eps, number)
        on_pass()
        return value

    def clean_at(number: int) -> float:
        if number not in clean:
            clean[number] = at(None, 0.0, number)
        return clean[number]

    def sides(group: Group, sample: int, number: int, eps: float) -> tuple[float, float]:
        """Half the difference of the two sides, and their sum less twice the clean loss."""
        direction = Direction(seed, -1 - sample, 0, kind, group.scales)
        plus, minus = at(direction, eps, number), at(direction, -eps, number)
        return (plus - minus) / 2.0, (plus + minus - 2.0 * clean_at(number) if number % batches == 0 else math.nan)

    checks = [_check(group, sides, min(_CHECKED, samples), batches) for group in groups]
    slopes = np.zeros((len(groups), samples, batches))
    bends = np.zeros((len(groups), samples))
    for sample in range(samples):
        for batch in range(batches):
            for number, (group, check) in enumerate(zip(groups, checks, strict=True)):
                first, second = sides(group, sample, sample * batches + batch, check.eps)
                slopes[number, sample, batch] = first / check.eps
                if batch == 0:
                    bends[number, sample] = second / check.eps**2
    return [
        summarise(group.name, slopes[number], bends[number], check, queries)
        for number, (group, check) in enumerate(zip(groups, checks, strict=True))
    ]


@dataclass(frozen=True)
class EpsCheck:
    """The eps of a group's measurement, True if it suits derivative and curvature, the range that suits the first."""

    eps: float
    quadratic: bool
    training: Eps


def _check(group: Group, sides: Callable[..., tuple[float, float]], count: int, batches: int) -> EpsCheck:
    """Finds an eps for a group from the loss at several multiples of it, with a few changes at most."""
    eps = group.eps
    for _ in range(_ROUNDS):
        read = [[sides(group, i, i * batches, level * eps) for level in _LEVELS] for i in range(count)]
        training, curvature = eps_ranges(np.array(read), eps)
        usable = training.both(curvature)
        if eps in usable:
            return EpsCheck(eps, True, training)
        # Well inside the range, but by limited steps: from afar, its ends are rough estimates.
        moved = min(usable.high, 2.0 * usable.low) if eps < usable.low else max(usable.low, usable.high / 2.0)
        eps = min(max(moved, eps / _FARTHEST), eps * _FARTHEST)
    return EpsCheck(eps, False, training)


def eps_ranges(read: np.ndarray, eps: float) -> tuple[Eps, Eps]:
    """Usable scales for derivatives and for curvatures.

    Half the difference of the sides at e is e g + e^3 t / 6, their sum less twice the loss is e^2 h + e^4 q / 12. Two
    unknowns are fitted to the values at three e for each direction; the residual is rounding, and higher terms.

    Args:
        read: [directions, levels, 2], at `_LEVELS` times eps.
    """
    if not np.isfinite(read).all():
        # The loss is not finite that far away.
        return Eps(eps / 1e3, eps / 10.0), Eps(eps / 1e3, eps / 10.0)
    levels = eps * np.array(_LEVELS)
    ranges = []
    for part, power, factor in ((0, 1, 6.0), (1, 2, 12.0)):
        # In units of eps, so that the columns are of similar size.
        terms = np.stack([(levels / eps) ** power, (levels / eps) ** (power + 2) / factor], axis=1)
        fitted, _, _, _ = np.linalg.lstsq(terms, read[:, :, part].T, rcond=None)
        left_over = read[:, :, part].T - terms @ fitted
        variance = (left_over**2).sum() / read.shape[0] / (len(_LEVELS) - 2)
        # Mean squares of both unknowns, less the contribution of rounding.
        spurious = variance * np.diag(np.linalg.inv(terms.T @ terms))
        wanted, bias = np.sqrt(np.maximum(0.0, (fitted**2).mean(axis=1) - spurious))
        low = float(math.sqrt(variance) / (_ROUNDING * wanted)) ** (1.0 / power) if wanted > 0.0 else math.inf
        high = float(math.sqrt(factor * _BIAS * wanted / bias)) if wanted > 0.0 and bias > 0.0 else math.inf
        ranges.append(Eps(eps * low, eps * high))
    return ranges[0], ranges[1]


def summarise(group: str, slopes: np.ndarray, bends: np.ndarray, check: EpsCheck, queries: int = 1) -> Sensitivity:
    """Estimates and errors of one group.

    Args:
        slopes: derivatives g, [directions, minibatches].
        bends: curvatures h on the first minibatch of each direction, [directions].
    """
    batches = slopes.shape[1]
    squares = (slopes**2).mean(axis=1)
    measured = np.stack(
        [
            # The mean of g_B g_B' over all pairs of different minibatches.
            (slopes.sum(axis=1) ** 2 - (slopes**2).sum(axis=1)) / (batches * (batches - 1)),
            squares,
            bends,
            bends * (slopes[:, 1:] ** 2).mean(axis=1),
        ],
        axis=1,
    )

    def curvature(m: np.ndarray) -> np.ndarray:
        """A mean of several directions keeps 1 / queries of E[g^2 h], and gains twice the cross terms grad . H grad,
        which are half of the covariance of g^2 and h."""
        cross = np.maximum(0.0, m[3] - m[1] * m[2]) / 2.0
        return m[3] / queries + (1.0 - 1.0 / queries) * cross

    figures = {
        "gradient": lambda m: m[0],
        "square": lambda m: m[1],
        "trace": lambda m: m[2],
        "curvature": curvature,
        "ratio": lambda m: m[0] / m[2],
        "rate": lambda m: m[0] / curvature(m),
        "length": lambda m: m[0] / curvature(m) * np.sqrt(m[1]),
        "decrease": lambda m: m[0] ** 2 / (2.0 * curvature(m)),
    }
    with np.errstate(all="ignore"):
        values = {name: jackknife(measured, figure) for name, figure in figures.items()}
    return Sensitivity(group, **values, eps=check.eps, eps_range=check.training, quadratic=check.quadratic)


def jackknife(rows: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Value:
    """A function of the column means of `rows` [N, K], with the standard error that leaving out each row gives.

    `figure` takes means [K] or several of them [K, N]. For the mean itself this is the usual standard error.
    """
    count = len(rows)
    without = (rows.sum(axis=0)[:, None] - rows.T) / (count - 1)
    left_out = figure(without)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    return Value(float(figure(rows.mean(axis=0))), float(error))
