"""Backpropagation: gradients against a plain loss, steps against mlx-lm's trainer, and what it promises of memory."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import Batch, Shapes, make_batch
from mlxzo.engine.encoding import encode
from mlxzo.engine.methods import make_method
from mlxzo.engine.methods.backprop import Backprop
from mlxzo.engine.scoring import Scorer
from mlxzo.models import lazy_layers
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.tasks.base import Example
from mlxzo.zo import inplace
from tests.engine.examples import (
    BATCHES,
    TOKENIZER,
    completion_examples,
    parameters,
    several_token_examples,
    single_token_examples,
)
from tests.tiny import tiny_model
from tests.variants import crossed, mostly_slow, slow

CASES = [
    ("llama", {}, "full", None),
    ("llama", {"tied": False}, "full", None),
    ("qwen3", {}, "full", None),
    ("qwen3", {"tied": False}, "last-2", None),
    ("gemma3", {}, "full", None),
    ("gemma3", {}, "norms/last-1", None),
    ("llama", {}, "lora", None),
    ("llama", {}, "lora+norms+biases+gains/last-2", None),
    ("llama", {}, "match:*.down_proj.weight,*embed*", None),
    # On the CPU quantised weights are dequantised and half-precision ones cast while their layer computes.
    ("llama", {"bits": 4}, "lora", mx.float32),
    ("llama", {"bits": 4}, "scales", mx.float32),
    ("llama", {"bits": 4, "tied": False}, "scales", None),
    ("llama", {"dtype": mx.bfloat16}, "full", mx.float32),
]


def backprop(
    kind: str = "llama", options: dict | None = None, compute_dtype: mx.Dtype | None = None, **config
) -> Backprop:
    return on_model(tiny_model(kind, **(options or {})), compute_dtype, **config)


def on_model(model: nn.Module, compute_dtype: mx.Dtype | None = None, **config) -> Backprop:
    run = RunConfig(method="bp", **config).resolved()
    trainable = prepare(model, run)
    scorer = Scorer(CausalLM(model, compute_dtype), trainable.frozen_layers, ActivationCache())
    method = make_method(scorer, trainable, run)
    assert isinstance(method, Backprop)
    return method


def stored(method: Backprop) -> dict[str, mx.array]:
    return {name: mx.array(weight) for name, weight in parameters(method.scorer.causal).items()}


def plain_loss_and_gradient(method: Backprop, batch: Batch) -> tuple[float, dict[str, mx.array]]:
    """The loss as its definition has it, an example and a candidate at a time, through the model's own full logits."""
    slots, model = method.slots, method.scorer.causal.model
    at_rest = {name: slot.get() for name, slot in slots.items()}

    def example_loss(part, b: int) -> mx.array:
        scores = []
        for k in part.candidate[b][part.candidate_mask[b]]:
            length = int(part.entry_mask[k].sum())
            places = part.positions[part.entry_position[k][:length]]
            row, first = divmod(int(places[0]), part.tokens.shape[1])
            logits = model(mx.array(part.tokens[row : row + 1]))[0, first : first + length].astype(mx.float32)
            likelihoods = nn.log_softmax(logits)[mx.arange(length), mx.array(part.entry_target[k][:length])]
            scores.append(likelihoods.mean())
        if len(scores) == 1:
            return -scores[0]
        return -nn.log_softmax(mx.stack(scores))[int(part.target[b])]

    def loss(given: dict[str, mx.array]) -> mx.array:
        for name, value in given.items():
            slots[name].set(value)
        losses = [example_loss(part, b) for part in batch.parts for b in range(len(part.target))]
        return mx.stack(losses).mean()

    try:
        for slot in slots.values():
            if slot.get().dtype == mx.bfloat16:
                slot.set(slot.get().astype(mx.float32))
        value, gradient = mx.value_and_grad(loss)({name: slots[name].get() for name in method.trainable.names})
        mx.eval(value, gradient)
    finally:
        for name, weight in at_rest.items():
            slots[name].set(weight)
    return value.item(), gradient


def difference(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    """Largest difference of two gradients in norm, tensor by tensor, relative to the norm of the largest tensor."""
    assert one.keys() == other.keys()
    norms, largest = [], 1e-12
    for name, a in one.items():
        a, b = a.astype(mx.float32), other[name].astype(mx.float32)
        norms.append(mx.linalg.norm((a - b).reshape(-1)).item())
        largest = max(largest, mx.linalg.norm(b.reshape(-1)).item())
    return max(norms) / largest


@pytest.mark.parametrize(
    ("kind", "options", "scope", "compute_dtype", "batch"),
    crossed(CASES, [(batch,) for batch in ("several", "single", "completion")]),
)
def test_gradients_are_those_of_the_plain_loss_with_and_without_checkpointing(
    kind, options, scope, compute_dtype, batch
):
    methods = [backprop(kind, options, compute_dtype, scope=scope, checkpointing=on) for on in ("off", "on")]
    data = BATCHES[batch]()
    if "lora" in scope:
        # At its start B is zero, and the gradient of A with it.
        for method in methods:
            for name in (n for n in method.trainable.names if n.endswith("lora_b")):
                shape = method.slots[name].get().shape
                method.slots[name].set(0.3 * mx.random.normal(shape, key=mx.random.key(5)))
    (loss, off), (loss_on, on) = (method.gradients(data) for method in methods)
    expected_loss, expected = plain_loss_and_gradient(methods[0], data)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    # A gradient is in the dtype of its weight, and that of bfloat16 ends after 8 bits.
    assert difference(off, expected) < (1e-2 if "dtype" in options else 1e-5)
    assert loss_on == pytest.approx(loss, abs=1e-6)
    assert difference(on, off) < 1e-6


def test_gradients_agree_with_finite_differences_in_float64():
    from tests.engine.test_mezo import numpy_loss

    method, batch = backprop(scope="full"), BATCHES["several"]()
    _, gradient = method.gradients(batch)
    weights = {name: np.array(w, np.float64) for name, w in stored(method).items()}
    random = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        along = random.standard_normal(weights[name].shape)
        sides = [numpy_loss({**weights, name: weights[name] + t * along}, batch) for t in (1e-5, -1e-5)]
        exact = float((np.array(gradient[name], np.float64) * along).sum())
        assert exact == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("scope", ["full", "lora"])
@pytest.mark.parametrize("examples", [single_token_examples, several_token_examples, completion_examples])
def test_micro_batches_of_one_sequence_give_the_gradient_of_the_whole_batch(scope, examples):
    method = backprop(scope=scope)
    encoded = [encode(example, TOKENIZER, 64) for example in examples()]
    whole, cut = (make_batch(encoded, shapes) for shapes in (Shapes(multiple=64), Shapes(multiple=64, rows=1)))
    assert len(cut.parts) == len(encoded) > len(whole.parts)
    (one_loss, one), (other_loss, other) = method.gradients(whole), method.gradients(cut)
    assert other_loss == pytest.approx(one_loss, abs=1e-6)
    assert difference(other, one) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("scope", "checkpointing"), [("full", "off"), slow("lora", "off"), slow("full", "on"), ("lora", "on")]
)
def test_losses_are_those_of_mlx_lms_trainer_step_by_step(tied, scope, checkpointing):
    """Answers of one length, so that the mean over the batch's tokens is the mean over its examples."""
    from mlx_lm.tuner.trainer import default_loss

    settings = {"scope": scope, "lr": 1e-3, "schedule": "constant", "checkpointing": checkpointing}
    ours, theirs = (backprop("qwen3", {"tied": tied}, **settings) for _ in range(2))
    prompts = [example.prompt for example in single_token_examples()]
    encoded = [encode(Example(prompt, (f" {i}{i}{i}{i}",), 0), TOKENIZER, 64) for i, prompt in enumerate(prompts)]
    assert len({len(example.targets[0]) for example in encoded}) == 1 < len(encoded[0].targets[0])

    model = theirs.scorer.causal.model
    model.freeze()
    for name in theirs.trainable.names:
        slot = theirs.slots[name]
        slot.container.unfreeze(keys=[slot.key], recurse=False)
    optimizer = optimizers.Adam(1e-3, bias_correction=True)
    loss_and_gradients = nn.value_and_grad(model, default_loss)
    for step in range(5):
        picked = [encoded[(step + i) % len(encoded)] for i in range(3)]
        length = max(e.length for e in picked) + 1
        rows = [[*e.rows[0].tokens, e.targets[0][-1]] for e in picked]
        tokens = mx.array([row + [0] * (length - len(row)) for row in rows])
        # The first and the last predicted position that counts, from 1.
        lengths = mx.array([[e.rows[0].first_position + 1, len(e.rows[0].tokens)] for e in picked])
        (expected, _), gradients = loss_and_gradients(model, tokens, lengths)
        optimizer.update(model, gradients)
        assert ours.step(step, make_batch(picked, Shapes())).loss == pytest.approx(expected.item(), abs=1e-4), step


def test_adamw_is_algorithm_2_of_loshchilov_and_hutter_on_matrices_and_adam_on_vectors():
    method = backprop(scope="full", optimizer="adamw", weight_decay=0.1, lr=1e-2, schedule="linear", steps=4)
    weights = {name: np.array(w, np.float64) for name, w in stored(method).items()}
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    batch = BATCHES["single"]()
    for step in range(3):
        _, gradient = method.gradients(batch)
        lr = 1e-2 * (1 - step / 4)
        assert method.step(step, batch).lr == pytest.approx(lr)
        for name, g in gradient.items():
            g = np.array(g, np.float64)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            corrected = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            decay = 0.1 if g.ndim > 1 else 0.0
            weights[name] -= lr * (corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + decay * weights[name])
        for name, weight in stored(method).items():
            # Where a gradient is about zero, Adam's quotient hangs on its last bits.
            assert np.abs(np.array(weight) - weights[name]).mean() < 2e-5, name


def test_sgd_moves_by_the_gradient_and_keeps_no_state():
    method = backprop(scope="last-1", optimizer="sgd", lr=0.5, schedule="constant")
    batch, before = BATCHES["several"](), stored(method)
    _, gradient = method.gradients(batch)
    method.step(0, batch)
    for name, weight in stored(method).items():
        expected = before[name] - 0.5 * gradient[name] if name in gradient else before[name]
        assert mx.allclose(weight, expected, atol=1e-6).item(), name
    assert not any(method.states.values())


def test_kinds_of_one_scope_move_at_rates_of_their_own():
    method = backprop(scope="lora+norms", schedule="constant")
    before = stored(method)
    method.step(0, BATCHES["single"]())
    # Adam's first step has the length of the rate.
    moved = {n: mx.abs(w - before[n]).max().item() for n, w in stored(method).items() if n in method.trainable.names}
    assert moved["model.layers.2.self_attn.q_proj.lora_b"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["model.norm.weight"] == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_weights_move_by_steps_too_short_to_be_rounded_to(dtype):
    settings = {"scope": "full", "lr": 2e-5, "schedule": "constant"}
    half, single = (backprop(options={"dtype": d}, compute_dtype=mx.float32, **settings) for d in (dtype, mx.float32))
    name, batch = "model.layers.1.mlp.down_proj.weight", BATCHES["completion"]()
    before = [method.slots[name].get().astype(mx.float32) for method in (half, single)]
    for step in range(10):
        for method in (half, single):
            method.step(step, batch)
    assert half.slots[name].get().dtype == dtype
    assert all(value.dtype == mx.float32 for value in half.states[name].values())
    moved, expected = (m.slots[name].get().astype(mx.float32) - b for m, b in zip((half, single), before, strict=True))
    # Regression of the real move on that of float32 weights, over 8,192 weights.
    slope = ((moved * expected).sum() / (expected * expected).sum()).item()
    assert slope == pytest.approx(1.0, abs=0.2 if dtype == mx.bfloat16 else 0.1)


@pytest.mark.parametrize(("options", "scope"), [({}, "full"), ({"dtype": mx.bfloat16}, "full"), ({"bits": 4}, "lora")])
def test_chunks_change_no_bit_of_an_update_and_nothing_of_a_gradient(options, scope, monkeypatch):
    batch, gradients, weights = BATCHES["completion"](), [], []
    for chunk_bytes in (inplace.CHUNK_BYTES, 4 * 64 * 40):
        monkeypatch.setattr(inplace, "CHUNK_BYTES", chunk_bytes)
        method = backprop(options=options, compute_dtype=mx.float32, scope=scope, lr=1e-3)
        _, gradient = method.gradients(batch)
        method._move(dict(gradient), 0, 1e-3)
        weights.append(stored(method))
        monkeypatch.setattr(lazy_layers, "CHUNK_BYTES", chunk_bytes)
        gradients.append(method.gradients(batch)[1])
    assert all(mx.array_equal(weight, weights[1][name]).item() for name, weight in weights[0].items())
    # A gradient of bfloat16 weights is rounded to their dtype.
    assert difference(*gradients) < (1e-3 if "dtype" in options else 1e-5)


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_training_is_the_same_to_the_bit_when_repeated_whatever_the_global_seed(checkpointing):
    outcomes = []
    for global_seed in (1, 2):
        mx.random.seed(global_seed)
        method = backprop(options={"dtype": mx.bfloat16}, scope="full", lr=1e-3, checkpointing=checkpointing)
        losses = [method.step(step, BATCHES["several"]()).loss for step in range(3)]
        outcomes.append((losses, stored(method)))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(mx.array_equal(weight, outcomes[1][1][name]).item() for name, weight in outcomes[0][1].items())


def test_frozen_layers_whose_output_is_kept_are_not_looked_at():
    method, batch = backprop(options={"layers": 4}, scope="last-1"), BATCHES["several"]()
    method.scorer.cache = ActivationCache()
    loss, gradient = method.gradients(batch)
    for name, slot in method.slots.items():
        if name.startswith(("model.layers.0.", "model.layers.2.")):
            slot.set(mx.full(slot.get().shape, float("nan")))
    again, same = method.gradients(batch)
    assert again == loss
    assert difference(same, gradient) == 0.0


def test_a_loss_that_is_not_finite_moves_nothing():
    method = backprop(scope="full")
    slot = method.slots["model.norm.weight"]
    slot.set(mx.full(slot.get().shape, float("nan")))
    before = stored(method)
    assert not np.isfinite(method.step(0, BATCHES["single"]()).loss)
    assert all(mx.array_equal(w, before[n], equal_nan=True).item() for n, w in stored(method).items())


def test_gradients_leave_every_stored_weight_in_its_place():
    method = backprop(options={"bits": 4}, compute_dtype=mx.float32, scope="lora", checkpointing="on")
    places, layers = {n: id(w) for n, w in parameters(method.scorer.causal).items()}, list(method.scorer.causal.layers)
    method.gradients(BATCHES["completion"]())
    assert {n: id(w) for n, w in parameters(method.scorer.causal).items()} == places
    assert all(a is b for a, b in zip(layers, method.scorer.causal.layers, strict=True))


class Opaque(type(tiny_model())):
    """Scales its logits after the head, so that head times hidden is not enough."""

    def __call__(self, inputs, cache=None, input_embeddings=None):
        return 0.5 * super().__call__(inputs, cache, input_embeddings)


def opaque_model() -> nn.Module:
    model = tiny_model()
    opaque = Opaque(model.args)
    opaque.update(model.parameters())
    return opaque


@pytest.mark.parametrize("batch", BATCHES)
def test_a_model_without_hidden_states_is_trained_through_its_logits(batch):
    method, data = on_model(opaque_model(), scope="last-1"), BATCHES[batch]()
    assert not method.scorer.causal.exposes_hidden
    loss, gradient = method.gradients(data)
    expected_loss, expected = plain_loss_and_gradient(method, data)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert difference(gradient, expected) < 1e-5


def test_checkpointing_a_model_that_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match="one at a time") as caught:
        on_model(opaque_model(), scope="last-1", checkpointing="on")
    assert "--checkpointing off" in caught.value.fix


def peak_of_gradients(method: Backprop, batch: Batch) -> int:
    """Bytes above what is there before, the second time, when nothing is made for the first time."""
    method.gradients(batch)
    mx.clear_cache()
    resting = mx.get_active_memory()
    mx.reset_peak_memory()
    method.gradients(batch)
    return mx.get_peak_memory() - resting


def long_batch(count: int, shapes: Shapes) -> Batch:
    examples = [Example(f"{i % 10} the old clock in the hall struck nine" * 3, ("!", "."), 0) for i in range(count)]
    return make_batch([encode(example, TOKENIZER, 128) for example in examples], shapes)


@pytest.mark.parametrize(("options", "scope"), [({"tied": False}, "full"), ({"tied": False}, "lora"), ({}, "lora")])
def test_a_head_with_a_bias_is_differentiated_in_chunks(options, scope, monkeypatch):
    monkeypatch.setattr(lazy_layers, "CHUNK_BYTES", 4 * 64 * 40)
    model = tiny_model(**options)
    if "tied" in options:
        model.lm_head.bias = mx.random.normal((model.lm_head.weight.shape[0],), key=mx.random.key(3))
    method, batch = on_model(model, scope=scope), BATCHES["completion"]()
    loss, gradient = method.gradients(batch)
    expected_loss, expected = plain_loss_and_gradient(method, batch)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert difference(gradient, expected) < 1e-5


@pytest.mark.parametrize(("bits", "checkpointing"), [(None, "off"), (None, "on"), slow(4, "on")])
def test_neither_all_logits_nor_the_whole_effective_head_are_alive(bits, checkpointing, monkeypatch):
    vocabulary = 8_000
    monkeypatch.setattr(lazy_layers, "CHUNK_BYTES", 2**16)
    options = {"vocabulary": vocabulary, "layers": 1, "bits": bits}
    method = backprop(options=options, compute_dtype=mx.float32, scope="lora", checkpointing=checkpointing)
    examples = [Example("The old clock", (" struck nine and the rain had stopped at last" * 4,), 0) for _ in range(2)]
    batch = make_batch([encode(example, TOKENIZER, 128) for example in examples], Shapes())
    head, logits = (4 * vocabulary * size for size in (64, max(len(part.positions) for part in batch.parts)))
    assert peak_of_gradients(method, batch) < head < logits


@pytest.mark.parametrize("scope", mostly_slow(["lora", "full"], ["lora"]))
def test_checkpointing_keeps_the_input_of_each_layer_and_nothing_else(scope):
    batch = long_batch(8, Shapes())
    layer_input = 4 * batch.padded_token_count * 64
    growth = {}
    for checkpointing in ("off", "on"):
        peaks = []
        for layers in (6, 14):
            method = on_model(tiny_model(layers=layers), scope=scope, checkpointing=checkpointing)
            gradients = sum(method.slots[name].get().nbytes for name in method.trainable.names)
            peaks.append(peak_of_gradients(method, batch) - gradients)
        growth[checkpointing] = (peaks[1] - peaks[0]) / (14 - 6) / layer_input
    # Where whole layers train, inputs go while gradients come.
    assert growth["on"] < 1.5
    assert growth["off"] > 8.0


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_activations_are_those_of_one_micro_batch(checkpointing):
    method = backprop(options={"layers": 6}, scope="lora", checkpointing=checkpointing)
    one, four = (long_batch(count, Shapes(rows=4)) for count in (4, 16))
    assert (len(one.parts), len(four.parts)) == (1, 4)
    assert peak_of_gradients(method, four) < 1.5 * peak_of_gradients(method, one)


def test_an_update_makes_no_second_copy_of_weights_or_state(monkeypatch):
    monkeypatch.setattr(inplace, "CHUNK_BYTES", 2**20)
    method, batch = backprop(options={"vocabulary": 60_000, "layers": 1}, scope="full", lr=1e-3), BATCHES["single"]()
    method.step(0, batch)
    gradients = [method.gradients(batch)[1]]
    mx.clear_cache()
    resting = mx.get_active_memory()
    mx.reset_peak_memory()
    method._move(gradients.pop(), 1, 1e-3)
    embedding = 4 * 64 * 60_000
    assert mx.get_active_memory() < resting - embedding
    assert mx.get_peak_memory() < resting + 0.3 * embedding


def test_a_configuration_that_backpropagation_cannot_have_is_refused():
    for wrong, named in (({"optimizer": "sgd"}, "lr"),):
        with pytest.raises(ConfigError, match=f"^{named}:"):
            RunConfig(method="bp", **wrong)
    settled = RunConfig(method="bp", scope="lora", optimizer="adamw").resolved()
    assert (settled.lr, settled.weight_decay, settled.eps) == (1e-3, 0.01, None)
    assert dataclasses.replace(settled, optimizer="adam", weight_decay=None).resolved().weight_decay == 0.0
