"""The probe on losses whose gradient, curvature and noise are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mlxzo.zo.curvature import Eps, EpsCheck, Group, Sensitivity, eps_ranges, passes, probe, summarise

SIZE = 40
CHECK = EpsCheck(1e-2, True, Eps(1e-3, 1.0))


class Quadratic:
    """L_n(w) = (grad + noise_n) . w + w . (H + noise_n) w / 2 at w = 0, over two tensors `a` and `b`."""

    def __init__(self, noise: float, seed: int = 0):
        random = np.random.default_rng(seed)
        self.noise = noise
        self.grad = random.normal(size=SIZE)
        # Gradient and curvature share directions, as they do in networks.
        self.hessian = np.diag(random.uniform(0.5, 1.5, SIZE)) + 0.3 * np.outer(self.grad, self.grad)

    def __call__(self, direction, eps: float, number: int) -> float:
        if direction is None:
            return 3.0
        parts = [
            np.array(direction.scaled(name, (SIZE // 2,), 1.0)) if name in direction.scales else np.zeros(SIZE // 2)
            for name in "ab"
        ]
        w = eps * np.concatenate(parts)
        return float(3.0 + self.batch_gradient(number) @ w + 0.5 * w @ self.hessian @ w)

    def batch_gradient(self, number: int) -> np.ndarray:
        return self.grad + self.noise * np.random.default_rng(1000 + number).normal(size=SIZE)

    def truth(self, scale: np.ndarray) -> dict[str, float]:
        """What the probe should find for direction lengths `scale` [SIZE], by the moments of sign directions."""
        g, h = scale * self.grad, scale[:, None] * self.hessian * scale
        covariance = np.outer(g, g) + np.diag((self.noise * scale) ** 2)
        curvature = np.trace(covariance) * np.trace(h) + 2 * np.sum(covariance * h)
        curvature -= 2 * np.diag(covariance) @ np.diag(h)
        return {
            "gradient": g @ g,
            "square": np.trace(covariance),
            "trace": np.trace(h),
            "curvature": curvature,
            "ratio": g @ g / np.trace(h),
            "rate": g @ g / curvature,
            "length": g @ g / curvature * math.sqrt(np.trace(covariance)),
            "decrease": (g @ g) ** 2 / (2 * curvature),
        }


GROUPS = [Group("a", {"a": 0.5}, 1e-2), Group("both", {"a": 0.5, "b": 2.0}, 1e-2)]
SCALES = {"a": np.repeat([0.5, 0.0], SIZE // 2), "both": np.repeat([0.5, 2.0], SIZE // 2)}


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_gradient_and_curvature_of_a_quadratic_are_found_within_their_errors(noise, kind):
    quadratic = Quadratic(noise)
    for found in probe(quadratic, GROUPS, seed=3, kind=kind, samples=200):
        truth = quadratic.truth(SCALES[found.group])
        for name in ("gradient", "square", "trace", "ratio"):
            value = getattr(found, name)
            assert abs(value.value - truth[name]) < 4 * value.error, name
            assert value.error < 0.35 * truth[name]
        assert found.known and found.eps == 1e-2


def summaries(noise: float, count: int, samples: int, batches: int = 4, queries: int = 1) -> list[Sensitivity]:
    """Many probes of one quadratic, from numpy's own directions and batches."""
    random, quadratic = np.random.default_rng(7), Quadratic(noise)
    found = []
    for _ in range(count):
        z = random.choice([-1.0, 1.0], (samples, SIZE))
        gradients = quadratic.grad + noise * random.normal(size=(samples, batches, SIZE))
        slopes = np.einsum("id,ibd->ib", z, gradients)
        bends = np.einsum("id,de,ie->i", z, quadratic.hessian, z)
        found.append(summarise("all", slopes, bends, CHECK, queries))
    return found


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_estimates_are_unbiased_and_their_errors_are_right(noise):
    found, truth = summaries(noise, 600, 24), Quadratic(noise).truth(np.ones(SIZE))
    for name in ("gradient", "square", "trace", "curvature"):
        values = np.array([dataclasses.astuple(getattr(f, name)) for f in found])
        spread = values[:, 0].std()
        assert abs(values[:, 0].mean() - truth[name]) < 4 * spread / math.sqrt(len(found)), name
        # The error that is reported is the spread that is seen.
        assert math.sqrt((values[:, 1] ** 2).mean()) == pytest.approx(spread, rel=0.15), name
    for name in ("gradient", "square", "trace", "curvature", "ratio", "rate", "length", "decrease"):
        values = np.array([dataclasses.astuple(getattr(f, name)) for f in found])
        covered = np.abs(values[:, 0] - truth[name]) < 2 * values[:, 1]
        # 95 % for a normal distribution; means of few squares, and what is made of them, are skewed.
        assert covered.mean() > (0.82 if name in ("gradient", "square", "trace", "curvature", "ratio") else 0.75), name


def test_the_square_of_a_minibatch_derivative_is_not_taken_for_the_gradient():
    (found,) = probe(Quadratic(3.0), [Group("all", {"a": 1.0, "b": 1.0}, 1e-2)], seed=0, samples=100)
    assert found.square.value > 5 * found.gradient.value


def test_the_rate_that_is_found_gains_most_in_a_step():
    noise = 1.0
    quadratic, random = Quadratic(noise), np.random.default_rng(1)
    truth = quadratic.truth(np.ones(SIZE))
    z = random.choice([-1.0, 1.0], (40_000, SIZE))
    g = ((quadratic.grad + noise * random.normal(size=z.shape)) * z).sum(axis=1)
    gains = {}
    for share in (0.5, 1.0, 1.5):
        steps = -share * truth["rate"] * g[:, None] * z
        gains[share] = -(steps @ quadratic.grad + 0.5 * ((steps @ quadratic.hessian) * steps).sum(axis=1)).mean()
    assert gains[1.0] == max(gains.values())
    assert gains[1.0] == pytest.approx(truth["decrease"], rel=0.05)


def test_several_directions_a_step_allow_the_rate_that_a_simulation_finds():
    queries, random, quadratic = 4, np.random.default_rng(2), Quadratic(1.0)
    curvature = np.mean([f.curvature.value for f in summaries(1.0, 300, 24, queries=queries)])
    z = random.choice([-1.0, 1.0], (20_000, queries, SIZE))
    batch = quadratic.grad + random.normal(size=(20_000, SIZE))
    steps = np.einsum("nqd,nq->nd", z, np.einsum("nqd,nd->nq", z, batch)) / queries
    seen = ((steps @ quadratic.hessian) * steps).sum(axis=1).mean()
    # The cross terms are cut at zero, which few directions bias upwards.
    assert curvature == pytest.approx(seen, rel=0.25)


def test_noise_alone_is_not_known():
    random = np.random.default_rng(0)
    known = 0
    for _ in range(200):
        slopes, bends = random.normal(size=(24, 4)), 5.0 + random.normal(size=24)
        known += summarise("all", slopes, bends, CHECK).known
    assert known < 16
    assert "|grad|^2" in summarise("all", random.normal(size=(24, 4)), np.ones(24), CHECK).problem()
    assert "curvature" in summarise("all", np.ones((24, 4)), random.normal(size=24), CHECK).problem()
    assert "finite" in summarise("all", np.full((24, 4), np.nan), np.ones(24), CHECK).problem()
    assert "eps" in summarise("all", np.ones((24, 4)), np.ones(24), EpsCheck(1.0, False, Eps(2.0, 1.0))).problem()


def test_the_usable_eps_lies_between_rounding_and_the_next_order():
    g, h, t, q, noise, eps = 2.0, 3.0, 50.0, 4e3, 1e-6, 1e-2
    random = np.random.default_rng(0)
    levels = eps * np.array([0.125, 1.0, 2.0])
    odd, even = g * levels + t * levels**3 / 6, h * levels**2 + q * levels**4 / 12
    read = np.stack([odd, even], axis=-1) + noise * random.normal(size=(200, 3, 2))
    slope, curvature = eps_ranges(read, eps)
    assert slope.low == pytest.approx(noise / (0.3 * g), rel=0.15)
    assert slope.high == pytest.approx(math.sqrt(0.6 * g / t), rel=0.1)
    assert curvature.low == pytest.approx(math.sqrt(noise / (0.3 * h)), rel=0.15)
    assert curvature.high == pytest.approx(math.sqrt(1.2 * h / q), rel=0.1)
    assert slope.nearest(1.0) == slope.high and slope.nearest(1e-2) == 1e-2


@pytest.mark.parametrize("start", [1e-6, 10.0])
def test_an_eps_that_does_not_suit_is_moved_until_it_does(start):
    quadratic = Quadratic(0.0)

    def loss(direction, eps, number):
        value = quadratic(direction, eps, number)
        # Losses are float32, and the quadratic holds for short ways only.
        return float(np.float32(value + 10.0 * (abs(eps) ** 4 - eps**3)))

    (found,) = probe(loss, [Group("all", {"a": 1.0, "b": 1.0}, start)], seed=0, samples=60)
    assert found.quadratic and 1e-5 < found.eps < 1.0
    assert abs(found.trace.value - np.trace(quadratic.hessian)) < 4 * found.trace.error


def test_a_loss_without_a_usable_eps_is_not_known():
    def steps(direction, eps, number):
        return 1.0 + (0.0 if direction is None else float(np.random.default_rng(abs(hash(eps)) % 2**32).normal()))

    (found,) = probe(steps, [Group("all", {"a": 1.0, "b": 1.0}, 1e-2)], seed=0)
    assert not found.known and found.problem()


def test_a_probe_repeats_itself_and_asks_for_minibatches_in_order():
    asked: list[int] = []
    quadratic = Quadratic(1.0)

    def loss(direction, eps, number):
        asked.append(number)
        return quadratic(direction, eps, number)

    first = probe(loss, GROUPS, seed=5, samples=6, batches=3)
    each, shared = passes(6, 3)
    assert len(asked) == 2 * each + shared
    assert probe(loss, GROUPS, seed=5, samples=6, batches=3) == first
    assert probe(loss, GROUPS, seed=6, samples=6, batches=3) != first
    measured = asked[2 * each + shared - (2 * 2 * 6 * 3 + 2) :][: 2 * 2 * 6 * 3]
    assert measured == sorted(measured)
