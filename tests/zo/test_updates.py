"""Update rules and schedules against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from mlxzo.zo.updates import Adaptive, Sgd, learning_rate, update_rule


def test_sgd_is_rate_times_derivative():
    assert Sgd().factor(-3.0, 0.5) == -1.5


def test_the_first_adaptive_step_is_of_unit_length():
    assert Adaptive().factor(-7.0, 0.1) == pytest.approx(-0.1)


def test_adaptive_divides_by_the_root_of_the_corrected_mean_square():
    rule = Adaptive(decay=0.9)
    rule.factor(1.0, 1.0)
    mean_square = (0.1 * 0.9 * 1.0 + 0.1 * 4.0) / (1 - 0.9**2)
    assert rule.factor(2.0, 1.0) == pytest.approx(2.0 / math.sqrt(mean_square))


def test_adaptive_clips_a_derivative_far_out_of_the_running_range():
    rule = Adaptive(decay=0.99, clip=3.0)
    for _ in range(500):
        rule.factor(1.0, 1.0)
    assert rule.factor(1e6, 0.2) == pytest.approx(3.0 * 0.2)


def test_adaptive_stands_still_where_nothing_changes():
    assert Adaptive().factor(0.0, 1.0) == 0.0


def test_schedules():
    assert [learning_rate(2.0, "constant", step, 10) for step in (0, 5, 9)] == [2.0, 2.0, 2.0]
    assert [learning_rate(2.0, "linear", step, 10) for step in (0, 5)] == [2.0, 1.0]
    assert learning_rate(2.0, "cosine", 0, 10) == 2.0
    assert learning_rate(2.0, "cosine", 5, 10) == pytest.approx(1.0)


def test_rules_by_name():
    assert isinstance(update_rule("sgd"), Sgd)
    assert isinstance(update_rule("adaptive"), Adaptive)
