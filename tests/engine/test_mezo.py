"""The MeZO step against exact derivatives, against numpy, and against its own promises."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.scoring import Scorer
from mlxzo.models import effective_weights as effective_weights_module
from mlxzo.models import lazy_layers as standins_module
from mlxzo.models.causal import CausalLM
from mlxzo.models.trainable import prepare
from mlxzo.tasks.base import Example
from mlxzo.zo import inplace, rounding
from mlxzo.zo.perturb import Direction
from tests.engine.examples import BATCHES, TEXTS, batch_of, parameters
from tests.tiny import tiny_model
from tests.variants import crossed, mostly_slow, slow

CASES = [
    ("llama", {}, "full"),
    ("llama", {"tied": False}, "full"),
    ("llama", {}, "last-2"),
    ("llama", {}, "lora"),
    ("llama", {"bits": 4}, "lora/last-1"),
    ("llama", {"bits": 4}, "norms/last-2"),
    ("llama", {}, "norms/last-2"),
    ("qwen3", {}, "full"),
    ("qwen3", {}, "norms"),
    ("gemma3", {}, "full"),
    ("gemma3", {}, "norms/last-1"),
]
# Of each architecture and kind of scope at least one.
DEFAULT = [CASES[i] for i in (0, 3, 5, 6, 7, 10)]
case = pytest.mark.parametrize(
    ("kind", "options", "scope"), [each if each in DEFAULT else slow(*each) for each in CASES]
)


def mezo(kind: str = "llama", options: dict | None = None, *, compute_dtype=None, **config) -> MeZO:
    model = tiny_model(kind, **(options or {}))
    run = RunConfig(**{"estimator": "spsa", **config}).resolved()
    trainable = prepare(model, run)
    causal = CausalLM(model, compute_dtype)
    return MeZO(Scorer(causal, trainable.frozen_layers, ActivationCache()), trainable, run)


def direction(method: MeZO, step: int = 0) -> Direction:
    return Direction(method.config.seed, step, 0, method.config.directions, method.scales)


def both_sides(method: MeZO, batch, z: Direction, eps: float) -> tuple[float, float]:
    """Losses at w + eps z and w - eps z."""
    plus, minus = method.losses(batch, [(z, eps), (z, -eps)])
    return plus, minus


def loss(method: MeZO, batch) -> float:
    """The loss at w."""
    return method.losses(batch, [(None, 0.0)])[0]


def weights(method: MeZO) -> dict[str, np.ndarray]:
    """Every parameter of the model as raw bytes."""
    return {n: np.array(w.view(mx.uint8) if w.ndim else w) for n, w in parameters(method.causal).items()}


def exact_derivative(method: MeZO, batch, z: Direction) -> float:
    """d/dt L(w + t z) at t = 0 by forward-mode differentiation, through the model's own full logits."""
    causal = method.causal
    names = list(z.scales)
    stored = [causal.slots[n].get() for n in names]
    tangents = [z.scaled(n, w.shape, 1.0).astype(w.dtype) for n, w in zip(names, stored, strict=True)]

    def loss(*values):
        for name, value in zip(names, values, strict=True):
            causal.slots[name].set(value)
        return sum(part_loss(part) for part in batch.parts) / batch.size

    def part_loss(part):
        logits = causal.model(mx.array(part.tokens))
        logits = logits.reshape(-1, logits.shape[-1])[mx.array(part.positions)]
        logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        values = logp[mx.array(part.entry_position), mx.array(part.entry_target)]
        mask = mx.array(part.entry_mask)
        scores = ((values * mask).sum(-1) / mask.sum(-1))[mx.array(part.candidate)]
        scores = mx.where(mx.array(part.candidate_mask), scores, -1e30)
        chosen = mx.take_along_axis(scores, mx.array(part.target)[:, None], axis=1)[:, 0]
        if scores.shape[1] == 1:
            return -chosen.sum()
        return (mx.logsumexp(scores, axis=1) - chosen).sum()

    try:
        _, derivative = mx.jvp(loss, stored, tangents)
        mx.eval(derivative)
    finally:
        for name, value in zip(names, stored, strict=True):
            causal.slots[name].set(value)
    return derivative[0].item()


@pytest.mark.parametrize(
    ("kind", "options", "scope", "batch", "directions"),
    # How a direction is drawn, what kind of batch it is tried on and what trains have little to do with each other.
    crossed(CASES, [(batch, kind) for kind in ("sign", "gaussian") for batch in ("several", "single", "completion")]),
)
def test_the_two_sided_difference_is_the_directional_derivative(kind, options, scope, batch, directions):
    method, data = mezo(kind, options, scope=scope, directions=directions), BATCHES[batch]()
    if "lora" in scope:
        # At its start B is zero, so half of the derivative would vanish: move away from there.
        for step in range(3):
            method.apply_updates([(direction(method, 100 + step), 0.05)], 100 + step)
    z = direction(method)
    # z of a norm is short, so its eps may be long; float32 leaves an error of about 1e-6 / eps.
    eps = 3e-2 if "norms" in scope else 1e-3

    def difference(eps: float) -> float:
        plus, minus = both_sides(method, data, z, eps)
        return (plus - minus) / (2 * eps)

    # Richardson's extrapolation removes the error of order eps^2 that third derivatives cause.
    measured = (4 * difference(eps / 2) - difference(eps)) / 3
    exact = exact_derivative(method, data, z)
    assert measured == pytest.approx(exact, rel=0.02, abs=1e-4 if "norms" in scope else 5e-3)


@case
def test_evaluating_the_loss_leaves_every_weight_bit_as_it_was(kind, options, scope):
    method = mezo(kind, options, scope=scope)
    before = weights(method)
    arrays = {name: id(w) for name, w in parameters(method.causal).items()}
    layers = list(method.causal.layers)
    for batch in BATCHES.values():
        both_sides(method, batch(), direction(method), 1e-2)
    after = weights(method)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    assert {name: id(w) for name, w in parameters(method.causal).items()} == arrays
    assert all(a is b for a, b in zip(layers, method.causal.layers, strict=True))


def test_a_step_agrees_with_an_independent_numpy_mezo():
    """Algorithm 1 of Malladi et al. on the same direction: perturb in place, difference, update, all in float64."""
    method = mezo(scope="full", lr=1e-3, eps=1e-3, update="sgd")
    batch = BATCHES["several"]()
    z = direction(method)
    reference = {n: np.array(w, np.float64) for n, w in parameters(method.causal).items()}
    noise = {n: np.array(z.scaled(n, w.shape, 1.0), np.float64) for n, w in reference.items()}

    losses = [numpy_loss({n: w + sign * 1e-3 * noise[n] for n, w in reference.items()}, batch) for sign in (1, -1)]
    derivative = (losses[0] - losses[1]) / 2e-3

    outcome = method.step(0, batch)
    assert outcome.loss == pytest.approx(sum(losses) / 2, abs=1e-5)
    assert outcome.directional_derivative == pytest.approx(derivative, rel=1e-2, abs=2e-3)
    for name, weight in parameters(method.causal).items():
        expected = reference[name] - 1e-3 * derivative * noise[name]
        assert np.abs(np.array(weight) - expected).max() < 1e-6 + 1e-3 * 1e-2 * abs(derivative)


def numpy_loss(weights: dict[str, np.ndarray], batch) -> float:
    """Loss of the tiny llama (4 heads of 16, 2 key-value heads) in float64, written from the architecture."""
    losses = [loss for part in batch.parts for loss in numpy_losses(weights, part)]
    return float(np.mean(losses))


def numpy_losses(weights: dict[str, np.ndarray], part) -> list[float]:
    rows, length = part.tokens.shape
    h = weights["model.embed_tokens.weight"][part.tokens]

    def norm(x, w):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w

    def rope(x):
        half = x.shape[-1] // 2
        angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / half)
        cos, sin = np.cos(angles), np.sin(angles)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    causal = np.where(np.tril(np.ones((length, length))) == 1, 0.0, -np.inf)
    for i in range(3):
        p = f"model.layers.{i}."
        x = norm(h, weights[p + "input_layernorm.weight"])
        q, k, v = (
            (x @ weights[p + f"self_attn.{n}_proj.weight"].T).reshape(rows, length, -1, 16).swapaxes(1, 2)
            for n in "qkv"
        )
        q, k, v = rope(q), np.repeat(rope(k), 2, 1), np.repeat(v, 2, 1)
        s = q @ k.swapaxes(-1, -2) / 4.0 + causal
        s = np.exp(s - s.max(-1, keepdims=True))
        a = (s / s.sum(-1, keepdims=True)) @ v
        h = h + a.swapaxes(1, 2).reshape(rows, length, -1) @ weights[p + "self_attn.o_proj.weight"].T
        x = norm(h, weights[p + "post_attention_layernorm.weight"])
        g, u = (x @ weights[p + f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        h = h + (g / (1 + np.exp(-g)) * u) @ weights[p + "mlp.down_proj.weight"].T
    h = norm(h, weights["model.norm.weight"]).reshape(rows * length, -1)[part.positions]
    logits = h @ weights["model.embed_tokens.weight"].T
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = []
    for b, row in enumerate(part.candidate):
        scores = []
        for k in row[part.candidate_mask[b]]:
            n = int(part.entry_mask[k].sum())
            scores.append(logp[part.entry_position[k][:n], part.entry_target[k][:n]].mean())
        losses.append(np.log(np.exp(scores).sum()) - scores[part.target[b]])
    return losses


@case
def test_a_step_moves_what_trains_along_z_and_nothing_else(kind, options, scope):
    method = mezo(kind, options, scope=scope)
    before = {n: mx.array(w) for n, w in parameters(method.causal).items()}
    z = direction(method)
    method.apply_updates([(z, 0.01)], 0)
    for name, weight in parameters(method.causal).items():
        moved = (weight.astype(mx.float32) - before[name].astype(mx.float32)) if name in z.scales else None
        if moved is None:
            assert mx.array_equal(weight, before[name]).item()
        else:
            assert mx.allclose(moved, z.scaled(name, weight.shape, -0.01), atol=1e-6).item()


@pytest.mark.parametrize("scope", mostly_slow(["full", "last-2", "lora", "norms/last-2"], ["full", "lora"]))
def test_training_is_the_same_to_the_bit_when_repeated_and_whatever_the_global_seed(scope):
    outcomes = []
    for global_seed in (1, 2):
        mx.random.seed(global_seed)
        method = mezo(scope=scope)
        for step in range(5):
            method.step(step, BATCHES["several"]())
        outcomes.append(weights(method))
    assert all(np.array_equal(outcomes[0][n], outcomes[1][n]) for n in outcomes[0])
    mx.random.seed(0)
    other = mezo(scope=scope, seed=1)
    for step in range(5):
        other.step(step, BATCHES["several"]())
    assert not all(np.array_equal(outcomes[0][n], w) for n, w in weights(other).items())


@pytest.mark.parametrize(
    ("scope", "lr", "steps"),
    [("full", 1e-3, 20), slow("last-2", 1e-3, 60), slow("lora", 1e-2, 80), ("norms/last-2", 1.0, 20)],
)
def test_training_lowers_the_loss(scope, lr, steps):
    method = mezo(scope=scope, lr=lr)
    batch = BATCHES["single"]()
    before = loss(method, batch)
    for step in range(steps):
        method.step(step, batch)
    assert loss(method, batch) < 0.9 * before


def test_bfloat16_weights_keep_their_dtype_and_move_on_average_by_what_they_should():
    method = mezo(options={"dtype": mx.bfloat16}, scope="full", compute_dtype=mx.float32)
    name = "model.embed_tokens.weight"
    before = method.causal.slots[name].get().astype(mx.float32)
    total = mx.zeros_like(before)
    for step in range(25):
        z = direction(method, step)
        method.apply_updates([(z, 1e-4)], step)
        total = total + z.scaled(name, before.shape, -1e-4)
    after = method.causal.slots[name].get()
    assert after.dtype == mx.bfloat16
    moved = after.astype(mx.float32) - before
    # Regression of the real move on the intended one, over 32,768 weights.
    slope = ((moved * total).sum() / (total * total).sum()).item()
    assert slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
@pytest.mark.variant
def test_bfloat16_follows_the_float32_loss_curve_and_plain_rounding_falls_behind(monkeypatch):
    words, one_layer = (" terrible and empty", " great", " a moving story"), {"layers": 1}
    batch = batch_of([Example(f"{text} It was", words[: 2 + i % 2], i % 2) for i, text in enumerate(TEXTS)])

    def last_loss(dtype: mx.Dtype, seed: int) -> float:
        config = {"scope": "full", "lr": 2e-4, "steps": 300, "schedule": "constant", "seed": seed}
        method = mezo(options={"dtype": dtype, **one_layer}, compute_dtype=mx.float32, **config)
        return float(np.mean([method.step(step, batch).loss for step in range(300)][-50:]))

    exact, rounded = ([last_loss(dtype, seed) for seed in (0, 1)] for dtype in (mx.float32, mx.bfloat16))
    monkeypatch.setattr(rounding, "stochastic_round", lambda x, dtype, words: x.astype(dtype))
    plain = [last_loss(mx.bfloat16, seed) for seed in (0, 1)]
    start = loss(mezo(options=one_layer, scope="full"), batch)
    # In 300 steps the loss falls to less than half; a seed makes 0.02 to 0.1 of difference.
    assert np.mean(exact) < 0.5 * start
    assert abs(np.mean(rounded) - np.mean(exact)) < 0.1 * start
    assert min(plain) - max(exact) > 0.15 * start


@pytest.mark.parametrize(
    ("kind", "options", "scope", "batch"),
    crossed(
        [
            ("llama", {}, "full"),
            ("gemma3", {}, "full"),
            ("llama", {"tied": False}, "full"),
            ("llama", {"bits": 4}, "lora"),
        ],
        [(batch,) for batch in BATCHES],
    ),
)
def test_losses_and_updates_do_not_depend_on_the_size_of_chunks(kind, options, scope, batch, monkeypatch):
    outcomes = []
    for chunk_bytes in (inplace.CHUNK_BYTES, 4 * 64 * 40):
        for module in (effective_weights_module, standins_module, inplace):
            monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        method = mezo(kind, options, scope=scope, compute_dtype=mx.float32)
        losses = both_sides(method, BATCHES[batch](), direction(method), 1e-2)
        method.apply_updates([(direction(method), 0.01)], 0)
        outcomes.append((losses, weights(method)))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], abs=1e-5)
    assert all(np.array_equal(outcomes[0][1][n], w) for n, w in outcomes[1][1].items())


@pytest.mark.parametrize(
    ("update", "lr", "steps"),
    [
        ("sgd", 10.0, 25),
        ("adaptive", 2.0, 10),
    ],
)
def test_every_update_lowers_the_loss(update, lr, steps):
    method = mezo(scope="norms/last-2", queries=2, lr=lr, eps=0.1, update=update, weight_decay=1e-3)
    batch = BATCHES["single"]()
    before = loss(method, batch)
    for step in range(steps):
        method.step(step, batch)
    assert loss(method, batch) < 0.95 * before


def test_norms_of_a_half_precision_model_are_promoted_and_its_activations_are_not():
    method = mezo(options={"dtype": mx.bfloat16}, scope="norms/last-2")
    causal = method.causal
    assert all(causal.slots[n].get().dtype == mx.float32 for n in method.trainable.names)
    batch = BATCHES["single"]()
    places = [(mx.array(part.tokens), mx.array(part.positions)) for part in batch.parts]
    hidden = causal.hidden(*zip(*places, strict=True), causal.view())
    assert all(states.dtype == mx.bfloat16 for states in hidden)
    # A half-precision norm could not be perturbed by 1e-3 at all.
    plus, minus = both_sides(method, batch, direction(method), 0.1)
    assert plus != minus


def test_a_loss_that_is_not_finite_moves_nothing():
    method = mezo(scope="full")
    slot = method.causal.slots["model.norm.weight"]
    slot.set(mx.full(slot.get().shape, float("nan")))
    before = weights(method)
    outcome = method.step(0, BATCHES["single"]())
    assert not np.isfinite(outcome.loss)
    assert all(np.array_equal(before[n], w) for n, w in weights(method).items())
