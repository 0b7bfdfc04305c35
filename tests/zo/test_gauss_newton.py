"""Gauss-Newton systems of random directions, against exact derivatives of a linear softmax model."""

import numpy as np
import pytest

from mlxzo.zo.gauss_newton import Damping, Part, make_prior, make_system, odd_part

rng = np.random.default_rng(7)
N, C, D, K = 11, 3, 6, 4


class Linear:
    """Scores of a softmax regression, [N, C] for weights [D], with exact gradient and Hessian of its mean loss."""

    def __init__(self):
        self.features = rng.normal(size=(N, C, D))
        self.target = rng.integers(C, size=N)

    def scores(self, w):
        return self.features @ w

    def loss(self, w):
        scores = self.scores(w)
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(N), self.target]))

    def gradient_and_hessian(self, w):
        scores = self.scores(w)
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        gradient = np.einsum("nc,ncd->d", p - np.eye(C)[self.target], self.features) / N
        middle = np.einsum("nc,ce->nce", p, np.eye(C)) - np.einsum("nc,ne->nce", p, p)
        return gradient, np.einsum("ncd,nce,nef->df", self.features, middle, self.features) / N


def system(model, w, directions, eps=1e-3):
    sides = np.stack([model.scores(w + eps * z) for z in directions])
    clean = model.scores(w)
    # Two parts of different lengths, as a batch has.
    cut = N // 3
    parts = (slice(0, cut), slice(cut, N))
    return make_system([Part(clean[p], sides[:, p], model.target[p], np.ones(N)[p]) for p in parts], eps)


def test_the_system_is_gradient_and_hessian_of_the_loss_in_the_span_of_the_directions():
    model, w, directions = Linear(), rng.normal(size=D), rng.normal(size=(K, D))
    found = system(model, w, directions)
    gradient, hessian = model.gradient_and_hessian(w)
    assert found.loss == pytest.approx(model.loss(w), rel=1e-12)
    np.testing.assert_allclose(found.gradient, directions @ gradient, rtol=1e-8)
    np.testing.assert_allclose(found.curvature, directions @ hessian @ directions.T, rtol=1e-7)


def test_with_as_many_directions_as_weights_the_undamped_step_is_newtons():
    model, w, directions = Linear(), 0.1 * rng.normal(size=D), rng.normal(size=(D, D))
    step = system(model, w, directions).step(0.0)
    gradient, hessian = model.gradient_and_hessian(w)
    np.testing.assert_allclose(step @ directions, -np.linalg.solve(hessian, gradient), rtol=1e-5)


def test_damping_shortens_the_step_towards_scaled_gradient_descent():
    model, w, directions = Linear(), rng.normal(size=D), rng.normal(size=(K, D))
    found = system(model, w, directions)
    lengths = [np.linalg.norm(found.step(damping)) for damping in (0.0, 0.1, 1.0, 10.0)]
    assert lengths == sorted(lengths, reverse=True)
    np.testing.assert_allclose(found.step(1e6) * 1e6, -found.gradient / np.diag(found.curvature), rtol=1e-4)


def test_the_predicted_decrease_is_that_of_the_loss_for_small_steps():
    model, w, directions = Linear(), rng.normal(size=D), rng.normal(size=(K, D))
    found = system(model, w, directions)
    step = 0.01 * found.step(1.0)
    actual = model.loss(w) - model.loss(w + step @ directions)
    assert found.decrease(step) == pytest.approx(actual, rel=1e-3)


def test_a_direction_that_changes_no_score_gets_no_step():
    model, w = Linear(), rng.normal(size=D)
    directions = np.stack([rng.normal(size=D), np.zeros(D)])
    step = system(model, w, directions).step(0.0)
    assert step[1] == 0.0 and step[0] != 0.0
    assert not system(model, w, np.zeros((2, D))).step(0.0).any()


def test_candidates_that_an_example_does_not_have_count_for_nothing():
    model, w, directions = Linear(), rng.normal(size=D), rng.normal(size=(K, D))
    whole = system(model, w, directions)
    clean = model.scores(w)
    sides = np.stack([model.scores(w + 1e-3 * z) for z in directions])
    more = np.full((N, 1), -np.inf)
    wider_sides = np.concatenate([sides, np.broadcast_to(more, (K, N, 1))], 2)
    wider = make_system([Part(np.hstack([clean, more]), wider_sides, model.target, np.ones(N))], 1e-3)
    assert wider.loss == pytest.approx(whole.loss, rel=1e-12)
    np.testing.assert_allclose(wider.gradient, whole.gradient, rtol=1e-10)
    np.testing.assert_allclose(wider.curvature, whole.curvature, rtol=1e-10)


def test_a_score_that_is_not_a_number_makes_the_loss_not_a_number():
    model, w = Linear(), rng.normal(size=D)
    clean = model.scores(w)
    clean[2, 1] = np.nan
    assert np.isnan(make_system([Part(clean, clean[None], model.target, np.ones(N))], 1e-3).loss)


def test_of_a_single_candidate_the_system_is_the_empirical_fisher_matrix():
    """Tokens with independent derivatives: the curvature is on average the mean of the products of each token's."""
    examples, tokens, eps = 4000, 5, 1e-3
    slopes = rng.normal(size=(examples, tokens, K)) * np.array([1.0, 2.0, 0.5, 1.5])
    losses = rng.normal(size=(examples, 1)) + 3.0
    sides = np.moveaxis(-losses[..., None] - eps * slopes.mean(axis=1)[:, None, :], -1, 0)
    part = Part(-losses, sides, np.zeros(examples, int), np.full(examples, tokens))
    found = make_system([part], eps)
    assert found.loss == pytest.approx(losses.mean())
    np.testing.assert_allclose(found.gradient, slopes.mean(axis=(0, 1)), rtol=1e-6)
    of_tokens = np.einsum("ntk,ntl->kl", slopes, slopes) / (examples * tokens)
    np.testing.assert_allclose(found.curvature, of_tokens, atol=0.15)


def test_damping_falls_after_moves_that_came_out_as_predicted_and_rises_after_others():
    damping = Damping(1.0, 0.0)
    damping.tried(0.9, 1.0)
    assert damping.value == damping.trust == pytest.approx(1 / 3)
    damping.tried(0.5, 1.0)
    assert damping.value == pytest.approx(1 / 3)
    for actual in (0.1, -1.0, float("nan")):
        before = damping.value
        damping.tried(actual, 1.0)
        assert damping.value == 4 * before


def test_damping_settles_where_moves_have_the_best_length_for_other_examples():
    """A quadratic whose gradient on other examples is a third of the one that the step was made of."""
    damping, noise = Damping(0.0, 0.1), np.random.default_rng(1)
    values = []
    for _ in range(3000):
        # One direction with b = -1 and A = 1: the move is 1 / (1 + damping); other examples have b = -1/3.
        move = 1.0 / (1.0 + damping.value)
        actual = move / 3 - 0.5 * move * move + 0.03 * noise.normal()
        damping.judged(actual, move * move)
        values.append(damping.value)
    assert np.median(values[1000:]) == pytest.approx(2.0, abs=0.4)
    damping.judged(float("nan"), 1.0)
    assert np.isfinite(damping.value)


def test_a_prior_is_the_distance_from_the_start_and_steps_to_the_minimum_of_the_sum():
    model, start, w = Linear(), rng.normal(size=D), rng.normal(size=D)
    directions, precision = rng.normal(size=(K, D)), 0.3
    prior = make_prior(w - start, directions, precision)
    a = rng.normal(size=K)
    distance = w + a @ directions - start
    np.testing.assert_allclose(prior.loss - prior.decrease(a), 0.5 * precision * distance @ distance)
    # With as many directions as weights, undamped steps end where the gradient of the sum is zero.
    for _ in range(20):
        directions = rng.normal(size=(D, D))
        both = system(model, w, directions, eps=1e-6) + make_prior(w - start, directions, precision)
        w = w + both.step(0.0) @ directions
    np.testing.assert_allclose(model.gradient_and_hessian(w)[0] + precision * (w - start), 0.0, atol=1e-5)


def test_two_sided_differences_leave_out_what_is_even_in_eps():
    clean = np.array([[1.0, 2.0, -np.inf]])
    slopes, curved = np.array([[[3.0, -1.0, 0.0]], [[0.5, 0.0, 0.0]]]), np.array([[[70.0, 80.0, 0.0]]])
    eps = 0.5
    after, before = (clean + side * eps * slopes + eps**2 * curved for side in (1.0, -1.0))
    sides = odd_part(clean, after, before)
    assert np.isneginf(sides[:, 0, 2]).all()
    np.testing.assert_allclose((sides[..., :2] - clean[..., :2]) / eps, slopes[..., :2])
    target = np.array([0])
    exact = make_system([Part(clean, clean + eps * slopes, target, target)], eps)
    found = make_system([Part(clean, sides, target, target)], eps)
    np.testing.assert_allclose(found.gradient, exact.gradient)
    np.testing.assert_allclose(found.curvature, exact.curvature)
