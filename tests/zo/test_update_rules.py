"""Update rules, estimators and schedules against figures worked out by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.core.lr_schedule import learning_rate
from mlxzo.zo.estimators import Estimator, GradientEstimate, Spsa
from mlxzo.zo.perturb import Direction
from mlxzo.zo.update_rules import RunningRms, UpdateRule


def rule(adaptive: bool, decay: float = 0.9) -> UpdateRule:
    return UpdateRule(adaptive, RunningRms(decay))


def test_sgd_is_rate_times_the_mean_over_directions():
    assert rule(False).factors([-3.0], 0.5) == [-1.5]
    assert rule(False).factors([-3.0, 1.0], 0.5) == [-0.75, 0.25]


def test_the_first_adaptive_step_is_of_unit_length():
    assert rule(True).factors([-7.0], 0.1) == [pytest.approx(-0.1)]
    assert rule(True).factors([-7.0, 7.0], 0.1) == [pytest.approx(-0.05), pytest.approx(0.05)]


def test_adaptive_divides_by_the_root_of_the_corrected_mean_square():
    adaptive = rule(True)
    adaptive.factors([1.0], 1.0)
    mean_square = (0.1 * 0.9 * 1.0 + 0.1 * 4.0) / (1 - 0.9**2)
    assert adaptive.factors([2.0], 1.0) == [pytest.approx(2.0 / math.sqrt(mean_square))]


@pytest.mark.parametrize(("adaptive", "length"), [(True, 3.0), (False, 50.0)])
def test_the_adaptive_rule_alone_cuts_a_derivative_far_out_of_the_running_range(adaptive, length):
    cut = rule(adaptive, decay=0.999999)
    for _ in range(2000):
        cut.factors([2.0], 1.0)
    assert abs(cut.factors([-50.0], 0.2)[0]) == pytest.approx(length * 0.2, rel=0.2)


def test_a_rule_stands_still_where_nothing_changes():
    assert rule(True).factors([0.0, 0.0], 1.0) == [0.0, 0.0]
    assert rule(False).factors([0.0], 1.0) == [0.0]


def direction(step: int, index: int = 0) -> Direction:
    return Direction(0, step, index, "sign", {"w": 1.0})


def quadratic(curvature: float = 3.0):
    """L(w) = curvature / 2 * |w - 1|^2 at w = 0, in float64."""

    def loss(z: Direction | None, eps: float) -> float:
        w = np.zeros(32) if z is None else eps * np.array(z.scaled("w", (32,), 1.0), np.float64)
        return float(0.5 * curvature * ((w - 1.0) ** 2).sum())

    return lambda points: [loss(*point) for point in points]


def estimate_of(estimator: Estimator, losses, directions: list[Direction], eps: float) -> GradientEstimate:
    return estimator.combine(losses(estimator.points(directions, eps)), eps)


def test_spsa_of_a_quadratic_is_its_directional_derivative():
    directions = [direction(0, i) for i in range(5)]
    estimate = estimate_of(Spsa(), quadratic(), directions, 0.1)
    gradient = np.full(32, -3.0)
    expected = [float(gradient @ np.array(z.scaled("w", (32,), 1.0))) for z in directions]
    assert estimate.derivatives == pytest.approx(expected)
    # The mean of both sides is above the loss by half the curvature along z.
    assert estimate.loss == pytest.approx(48.0 + 0.5 * 0.1**2 * 3.0 * 32)


def test_schedules():
    assert [learning_rate(2.0, "constant", step, 10) for step in (0, 5, 9)] == [2.0, 2.0, 2.0]
    assert [learning_rate(2.0, "linear", step, 10) for step in (0, 5)] == [2.0, 1.0]
    assert learning_rate(2.0, "cosine", 0, 10) == 2.0
    assert learning_rate(2.0, "cosine", 5, 10) == pytest.approx(1.0)
    assert [learning_rate(2.0, "constant", step, 10, warmup=3) for step in (0, 1, 2, 3, 9)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_directions_are_made_again_from_their_names():
    assert mx.array_equal(direction(4).scaled("w", (32,), 1.0), direction(4).scaled("w", (32,), 1.0)).item()
