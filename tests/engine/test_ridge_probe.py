"""The closed form of the ridge probe against explicit solutions and leave-one-out refits."""

from __future__ import annotations

import numpy as np
import pytest

from mlxzo.engine.ridge_probe import STRENGTHS, fit


def problem(rows: int, columns: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States whose columns differ in size and place and are correlated with the labels, float32, and the labels."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, labels, rows)
    means = draw.normal(size=(labels, columns))
    states = (means[targets] + 2.0 * draw.normal(size=(rows, columns))) * 10.0 ** draw.uniform(-2, 2, columns) + 3.0
    return states.astype(np.float32), targets


def solved(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and unpenalised intercept by the normal equations of [x, 1], without centring."""
    design = np.hstack([x, np.ones((len(x), 1))])
    penalties = np.diag([penalty] * x.shape[1] + [0.0])
    found = np.linalg.solve(design.T @ design + penalties, design.T @ y)
    return found[:-1], found[-1]


def standardised(states: np.ndarray) -> np.ndarray:
    x = states.astype(np.float64)
    return (x - x.mean(axis=0)) / x.std(axis=0)


# More rows than columns, and fewer.
SIZES = [(23, 5, 2), (14, 30, 3)]


@pytest.mark.parametrize(("rows", "columns", "labels"), SIZES)
@pytest.mark.parametrize("strength", (0.01, 1.0, 100.0))
def test_the_error_is_that_of_refits_without_each_row(rows, columns, labels, strength):
    states, targets = problem(rows, columns, labels)
    x, y = standardised(states), np.eye(labels)[targets]
    missed = []
    for row in range(rows):
        others = np.arange(rows) != row
        weights, intercept = solved(x[others], y[others], rows * strength)
        missed.append(y[row] - x[row] @ weights - intercept)
    assert fit(states, targets, labels, (strength,)).error == pytest.approx(np.mean(np.square(missed)), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns", "labels"), SIZES)
def test_predictions_are_those_of_the_normal_equations(rows, columns, labels):
    states, targets = problem(rows, columns, labels)
    x, y = standardised(states), np.eye(labels)[targets]
    probe = fit(states, targets, labels, (0.1,))
    weights, intercept = solved(x, y, 0.1 * rows)
    assert probe.weights == pytest.approx(weights, rel=1e-8, abs=1e-12)
    assert probe.shares == pytest.approx(intercept, rel=1e-8)
    new, _ = problem(50, columns, labels, seed=1)
    seen = states.astype(np.float64)
    scaled = (new.astype(np.float64) - seen.mean(axis=0)) / seen.std(axis=0)
    assert np.array_equal(probe.predict(new), (scaled @ weights + intercept).argmax(axis=1))


def test_the_strength_of_the_smallest_error_is_chosen():
    states, targets = problem(40, 60, 2)
    errors = {strength: fit(states, targets, 2, (strength,)).error for strength in STRENGTHS}
    probe = fit(states, targets, 2)
    assert probe.error == min(errors.values()) and errors[probe.strength] == probe.error
    assert probe.strength not in (STRENGTHS[0], STRENGTHS[-1])


def test_a_probe_learns_what_can_be_learned_and_not_noise():
    states, targets = problem(300, 20, 3)
    probe = fit(states[:200], targets[:200], 3)
    assert np.mean(probe.predict(states[200:]) == targets[200:]) > 0.8
    # Of labels without a relation to the states nothing is learned: about the error of the shares alone.
    shuffled = np.random.default_rng(1).permutation(targets[:200])
    assert fit(states[:200], shuffled, 3).error > 0.97 * np.mean((np.eye(3)[shuffled] - probe.shares) ** 2)


def test_constant_columns_and_labels_without_a_row_do_no_harm():
    states, targets = problem(30, 4, 2)
    # A mean of many equal values is not exact: what remains must not be scaled up.
    constant = np.full((30, 1), 0.1, np.float32)
    plain, with_constant = fit(states, targets, 2), fit(np.hstack([states, constant]), targets, 3)
    assert with_constant.strength == plain.strength
    assert with_constant.weights[:4, :2] == pytest.approx(plain.weights)
    assert not with_constant.weights[:, 2].any() and abs(with_constant.weights[4]).max() < 1e-12
    new, _ = problem(20, 4, 2, seed=1)
    assert np.array_equal(with_constant.predict(np.hstack([new, constant[:20]])), plain.predict(new))


def test_equal_states_give_the_most_frequent_label():
    probe = fit(np.ones((5, 3)), np.array([0, 1, 1, 1, 0]), 2)
    assert probe.predict(np.ones((2, 3))).tolist() == [1, 1]
    # Without row i, the mean of the other labels.
    y = np.eye(2)[[0, 1, 1, 1, 0]]
    assert probe.error == pytest.approx(np.mean((y - (y.sum(axis=0) - y) / 4) ** 2))


def test_the_same_data_give_the_same_bits():
    states, targets = problem(50, 30, 2)
    first, again = fit(states, targets, 2), fit(states.copy(), targets.copy(), 2)
    assert first.weights.tobytes() == again.weights.tobytes() and first.error == again.error


@pytest.mark.parametrize("states", (np.ones((1, 3)), np.array([[1.0], [np.inf]]), np.array([[1.0], [np.nan]])))
def test_what_cannot_be_fitted_is_refused(states):
    with pytest.raises(ValueError, match="two rows of finite states"):
        fit(states, np.zeros(len(states), int), 2)
