"""The step of evolution strategies, against its definition written out."""

from __future__ import annotations

import numpy as np
import pytest

from mlxzo.zo.evolution import changed_share, evolution_factors


def test_a_step_is_the_mean_of_the_members_perturbations_weighted_by_their_z_scores():
    """Qiu et al. 2025 (arXiv 2509.24372), algorithm 1, with both sides of each direction as members."""
    random = np.random.default_rng(0)
    directions, rewards, lr, eps = random.normal(size=(5, 30)), random.normal(size=10), 0.7, 0.02
    perturbations = np.repeat(directions, 2, axis=0) * np.tile([1.0, -1.0], 5)[:, None]
    advantages = (rewards - np.mean(rewards)) / np.sqrt(np.mean((rewards - np.mean(rewards)) ** 2))
    expected = lr * eps * np.mean(advantages[:, None] * perturbations, axis=0)
    moved = -(evolution_factors(rewards, lr, eps) @ directions)
    assert moved == pytest.approx(expected, abs=1e-12)


def test_the_scale_and_the_zero_of_rewards_do_not_matter_and_one_of_them_cannot_dominate():
    rewards = np.array([0.1, 0.2, 0.4, 0.1, 0.3, 0.3])
    factors = evolution_factors(rewards, 1.0, 0.1)
    assert evolution_factors(1000 * rewards - 7, 1.0, 0.1) == pytest.approx(factors)
    assert factors[2] == 0.0 and factors[0] > 0.0 > factors[1]
    most = 1.0 * 0.1 * 2 * np.sqrt(5) / 6
    assert np.abs(evolution_factors(np.array([1e9, 0, 0, 0, 0, 0.0]), 1.0, 0.1)).max() < most


def test_members_with_equal_rewards_move_nothing():
    assert evolution_factors(np.full(6, 0.3), 1.0, 0.1).tolist() == [0.0] * 3


def test_answers_that_differ_from_the_most_frequent_one_have_changed():
    answers = np.array([[1, 5], [1, 6], [2, 7], [1, 8]], float)
    assert changed_share(answers) == pytest.approx((1 + 3) / 8)
    assert changed_share(np.zeros((4, 3))) == 0.0
