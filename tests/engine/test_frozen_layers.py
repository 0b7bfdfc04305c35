"""Frozen layers give a sequence the same bits whatever it is computed with, on a CPU and on a GPU."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import Shapes, make_batch
from mlxzo.engine.frozen_layers import FrozenLayers
from mlxzo.engine.scoring import Scorer
from mlxzo.models.causal import CausalLM
from tests.engine.examples import losses_of, some_examples
from tests.tiny import tiny_model

pytestmark = pytest.mark.device

GPU = Shapes.suited(on_cpu=False)


def assert_same_in_any_company(frozen: FrozenLayers, shapes: Shapes | None = None) -> None:
    """All sequences at once, and those of each example by themselves."""
    examples, shapes = some_examples(), shapes or frozen.shapes
    found: dict[tuple, mx.array] = {}
    for batch in (make_batch(examples, shapes), *(make_batch([example], shapes) for example in examples)):
        for part, rows in zip(batch.parts, frozen.compute(batch.parts), strict=True):
            for key, state in zip(frozen.keys(part), rows, strict=True):
                assert mx.array_equal(found.setdefault(key, state), state).item()
    assert len(found) == len({row.tokens for example in examples for row in example.rows})


@pytest.mark.parametrize("multiple", [1, 24, 1000])
def test_the_bits_of_a_sequence_do_not_depend_on_its_company(multiple, monkeypatch):
    causal = CausalLM(tiny_model())
    frozen = FrozenLayers(causal, 2, Shapes())
    measured = frozen._is_batch_invariant
    monkeypatch.setattr(frozen, "_is_batch_invariant", lambda length: length % multiple == 0 and measured(length))
    assert_same_in_any_company(frozen)


@pytest.fixture
def products(monkeypatch):
    """Products as on a GPU: their bits depend on the number of rows, as kernels are chosen by it, and with `by_place`
    on the place of a row. Keeps the shapes of the inputs."""
    exact, found = mx.array.__matmul__, {"by_place": False, "shapes": set()}

    def product(x, weight):
        found["shapes"].add(x.shape[:2])
        count = x.size // x.shape[-1]
        # Each row by itself: a product of the CPU may depend on the place of a row as well.
        rows = exact(x.reshape(count, 1, -1), mx.broadcast_to(weight, (count, *weight.shape)))
        number = mx.arange(count).reshape(count, 1, 1) if found["by_place"] else count
        return (rows * (1.0 + 1e-5 * number)).reshape(*x.shape[:-1], -1)

    monkeypatch.setattr(mx.array, "__matmul__", product)
    return found


@pytest.mark.parametrize("layers", [2, 3])
def test_on_a_gpu_sequences_are_computed_together_in_shapes_of_their_own_lengths(layers, products):
    frozen = FrozenLayers(CausalLM(tiny_model(layers=3)), layers, GPU)
    products["shapes"].clear()
    assert_same_in_any_company(frozen)
    lengths = {row.tokens: len(row.tokens) for example in some_examples() for row in example.rows}.values()
    assert products["shapes"] == {GPU.frozen(length) for length in lengths}
    assert min(rows for rows, _ in products["shapes"]) > 1
    # Micro-batches of any shape would not have done.
    assert not FrozenLayers(frozen.causal, layers, Shapes())._is_batch_invariant(32)


def test_sequences_run_alone_where_their_place_in_a_batch_matters(products):
    products["by_place"] = True
    frozen = FrozenLayers(CausalLM(tiny_model()), 2, GPU)
    assert_same_in_any_company(frozen)
    products["shapes"].clear()
    frozen.compute(make_batch(some_examples(), GPU).parts)
    assert {rows for rows, _ in products["shapes"]} == {1}


def test_the_bits_on_a_gpu_do_not_depend_on_the_micro_batches():
    causal = CausalLM(tiny_model())
    frozen = FrozenLayers(causal, 2, GPU)
    for shapes in (Shapes(32, 64, frozen_tokens=512), Shapes(64, 1024, frozen_tokens=512)):
        states = []
        for cut in (GPU, shapes):
            batch = make_batch(some_examples(), cut)
            rows = [row for part in frozen.compute(batch.parts) for row in part]
            keys = [key for part in batch.parts for key in frozen.keys(part)]
            states.append(dict(zip(keys, rows, strict=True)))
        assert states[0].keys() == states[1].keys()
        assert all(mx.array_equal(states[0][key], states[1][key]).item() for key in states[0])


@pytest.mark.parametrize("layers", [2, 3])
def test_losses_on_a_gpu_are_those_of_the_whole_model_with_and_without_a_cache(layers):
    causal, examples = CausalLM(tiny_model(layers=3)), some_examples()
    batch, view = make_batch(examples, GPU), causal.view()
    frozen = Scorer(causal, layers, shapes=GPU)
    losses = losses_of(frozen, batch, view)
    assert losses == pytest.approx(losses_of(Scorer(causal), batch, view), abs=1e-5)
    frozen.cache = ActivationCache()
    for _ in range(2):
        assert (losses_of(frozen, batch, view) == losses).all()
    # Metal bounds the number of arrays in memory: there is one for each micro-batch.
    assert len(frozen.cache._arrays) == len(batch.parts) < len(examples)


def test_lengths_have_four_shapes_an_octave_of_which_the_short_ones_hold_several_sequences():
    shapes = {length: GPU.frozen(length) for length in range(1, 2049)}
    assert all(length <= padded <= max(length + 31, 1.25 * length) for length, (_, padded) in shapes.items())
    assert {padded for _, padded in shapes.values() if padded > 512} == {640, 768, 896, 1024, 1280, 1536, 1792, 2048}
    assert [shapes[length] for length in (5, 40, 100, 129, 257)] == [(16, 32), (8, 64), (4, 128), (3, 160), (1, 320)]
    assert Shapes.suited(False, rows=2).frozen(5) == (2, 32)
