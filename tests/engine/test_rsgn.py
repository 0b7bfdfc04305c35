"""The RSGN step against exact derivatives, against the weights that it stores, and against its own promises."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.defaults import RSGN_QUERIES
from mlxzo.core.device import COMPUTE_AS
from mlxzo.core.errors import ConfigError
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.methods.rsgn import RSGN
from mlxzo.engine.scoring import Scorer, by_example
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.zo.apply import Moved, Update
from mlxzo.zo.journal import JournalWriter, read
from tests.engine.examples import BATCHES
from tests.engine.test_mezo import exact_derivative
from tests.tiny import tiny_model
from tests.variants import crossed, slow

CASES = {
    "final norm": ("llama", {}, {"scope": "norms/last-0"}),
    "norms": ("gemma3", {}, {"scope": "norms/last-2"}),
    "adapters": ("llama", {"bits": 4}, {"scope": "lora", "queries": 3}),
    "full float32": ("llama", {}, {"scope": "full"}),
    "full bfloat16": ("llama", {"dtype": mx.bfloat16}, {"scope": "full"}),
    "scales": ("llama", {"bits": 4}, {"scope": "scales/last-2"}),
}


def rsgn(kind: str, options: dict, config: dict) -> RSGN:
    model = tiny_model(kind, **options)
    run = RunConfig(estimator="rsgn", **{"queries": 4, "seed": 3, **config}).resolved()
    trainable = prepare(model, run)
    return RSGN(Scorer(CausalLM(model, mx.float32), trainable.frozen_layers, ActivationCache()), trainable, run)


def batch(name: str, repeats: bool):
    return replace(BATCHES[name](), repeats=repeats)


def trained(method: RSGN) -> dict[str, bytes]:
    weights = {name: method.causal.slots[name].get() for name in method.trainable.names}
    return {name: bytes(memoryview(mx.array(weight).view(mx.uint8))) for name, weight in weights.items()}


def loss(method: RSGN, of) -> float:
    return float(by_example(of, [grid[0] for grid in method.scores(of, [method.causal.view()])]).mean())


@pytest.mark.parametrize(
    ("case", "name"),
    crossed(
        [("norms",), ("final norm",), ("adapters",), ("full float32",)], [("several",), ("single",), ("completion",)]
    ),
)
def test_the_gradient_is_the_derivative_along_each_direction(case, name, tmp_path):
    kind, options, config = CASES[case]
    # One-sided differences: a large eps would show the curvature, a small one the rounding of float32.
    method = rsgn(kind, options, {**config, "eps": 1e-3 if case in ("final norm", "norms") else 1e-4})
    given = batch(name, repeats=False)
    expected = [exact_derivative(method, given, z) for z in method.directions(0)]
    method.journal = JournalWriter(tmp_path / "j", method.header("ab" * 32))
    method.step(0, given)
    method.journal.close()
    np.testing.assert_allclose(read(tmp_path / "j")[0].derivatives, expected, rtol=0.05, atol=0.1)


def test_adapters_in_half_precision_are_perturbed_to_both_sides(monkeypatch, tmp_path):
    kind, options, config = CASES["adapters"]
    given = batch("several", repeats=True)
    errors = {}
    for device in ("cpu", "gpu"):
        monkeypatch.setenv(COMPUTE_AS, device)
        # So far that the products of the perturbations of both factors show.
        method = rsgn(kind, options, {**config, "eps": 0.02})
        expected = [exact_derivative(method, given, z) for z in method.directions(0)]
        method.journal = JournalWriter(tmp_path / device, method.header("ab" * 32))
        done = method.step(0, given)
        method.journal.close()
        assert done.passes >= (2 if device == "gpu" else 1) * 3 + 2
        errors[device] = np.abs(np.subtract(read(tmp_path / device)[0].derivatives, expected)).max()
    assert errors["gpu"] < errors["cpu"] / 3
    # By default with half as many directions, for as many passes.
    asked = RunConfig(scope="lora")
    assert (asked.direction_count, asked.point_count) == (RSGN_QUERIES // 2, RSGN_QUERIES + 2)


@pytest.mark.parametrize("case", CASES)
def test_weights_seen_before_a_move_have_the_bits_that_are_stored_by_it(case):
    method = rsgn(*CASES[case])
    terms = [(direction, 0.01 * (i + 1)) for i, direction in enumerate(method.directions(5))]
    given = batch("several", repeats=True)
    view = Moved(Update(5, terms), set(method.trainable.names), 3, mx.float32)
    seen = {name: view.dense(name, method.causal.slots[name].get()) for name in method.trainable.names}
    before = method.scores(given, [view])
    mx.eval(seen)
    method.apply_updates(terms, 5)
    for name, weight in seen.items():
        assert mx.array_equal(weight, method.causal.slots[name].get().astype(mx.float32)).item(), name
    after = method.scores(given, [Moved(Update(6, []), set(method.trainable.names), 3, mx.float32)])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        *((case, "several") for case in ("norms", "full float32")),
        *(slow(case, "several") for case in ("final norm", "adapters", "full bfloat16", "scales")),
        *(("norms", name) for name in ("single", "completion")),
    ],
)
def test_on_a_batch_that_repeats_no_step_raises_the_loss(case, name):
    method = rsgn(*CASES[case])
    given = batch(name, repeats=True)
    losses = [method.step(step, given).loss for step in range(4)] + [loss(method, given)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_move_that_does_not_lower_the_loss_is_not_made(monkeypatch):
    method = rsgn(*CASES["norms"])
    given = batch("several", repeats=True)
    start, passes = trained(method), []
    compute = method.shared

    def shared(of, views, *rest):
        passes.append(len(views))
        grids = compute(of, views, *rest)
        # Of a trial: every candidate as likely as the others.
        return [np.zeros_like(grid) for grid in grids] if len(passes) > 2 else grids

    monkeypatch.setattr(method, "shared", shared)
    monkeypatch.setattr("mlxzo.engine.methods.rsgn.by_example", lambda of, grids: np.full(of.size, 99.0))
    result = method.step(0, given)
    assert trained(method) == start and result.damping == 4**4
    # The scores at w, those of 4 directions, and 4 trials, beside the normalisers; the next step knows the scores at w.
    assert passes == [1, 4, 1, 1, 1, 1] and result.passes == 10
    assert method.step(1, given).passes == 9 and passes[6:] == [4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("case", "repeats"),
    [
        *(("full bfloat16", True), slow("final norm", True)),
        *(("adapters", False), slow("norms", False)),
    ],
)
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(case, repeats, tmp_path):
    names = list(BATCHES)

    def of(step):
        return batch("several" if repeats else names[step % len(names)], repeats)

    whole = rsgn(*CASES[case])
    whole.journal = JournalWriter(tmp_path / "j", whole.header("ab" * 32))
    given = of(0)
    for step in range(5):
        whole.step(step, given if repeats else of(step))
    whole.journal.close()
    journal = read(tmp_path / "j")
    assert len(journal) == 5
    # As if the run had been killed after three steps.
    cut = tmp_path / "cut"
    cut.write_bytes(journal.encode(3, journal.header))
    again = rsgn(*CASES[case])
    again.resume(read(cut), 0)
    again.journal = JournalWriter(cut, journal.header, after=read(cut))
    given = of(0)
    for step in range(3, 5):
        again.step(step, given if repeats else of(step))
    again.journal.close()
    assert cut.read_bytes() == (tmp_path / "j").read_bytes() and trained(again) == trained(whole)
    # Weights alone, without a forward pass.
    replayed = rsgn(*CASES[case])
    replayed.resume(journal, 0)
    assert trained(replayed) == trained(whole)


def test_another_batch_judges_the_last_move():
    method = rsgn(*CASES["norms"])
    first, second = batch("several", repeats=False), batch("single", repeats=False)
    before = loss(method, second)
    assert method.step(0, first) and method.damping.noise == 3.0
    after = loss(method, second)
    # Besides w, four directions and one trial: the weights before the move, which judge it.
    assert method.step(1, second).passes == 7
    assert (method.damping.noise < 3.0) == (before - after > 0.5 * method_along(method, first))


def method_along(method: RSGN, given) -> float:
    """The curvature along the first move of a method like this one."""
    other = rsgn(*CASES["norms"])
    other.step(0, given)
    assert other._last is not None
    return other._last[1]


def test_options_of_other_estimators_are_refused():
    with pytest.raises(ConfigError) as error:
        RunConfig(estimator="rsgn", lr=0.1, objective="accuracy", weight_decay=0.1)
    assert len(error.value.details) == 3
