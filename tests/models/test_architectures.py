"""Architectures of today, as tiny random models: each property holds for all of them, without code for any."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models import qwen3_5

from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.scoring import Scorer
from mlxzo.models.adapters import final_norm
from mlxzo.models.causal import CausalLM
from mlxzo.models.export import write_adapter, write_fused
from mlxzo.models.last_layer import at_positions
from mlxzo.models.loading import load_model
from mlxzo.models.slots import parameter_slots, slot_of
from mlxzo.models.trainable import prepare
from mlxzo.zo.chunks import CHUNK_BYTES
from mlxzo.zo.perturb import Direction
from tests.engine.examples import BATCHES, batch_of, losses_of, single_token_examples
from tests.engine.test_backprop import difference, on_model, plain_loss_and_gradient
from tests.tiny import ARCHITECTURES, tiny_folder, tiny_model
from tests.variants import mostly_slow, slow

OTHERS = [kind for kind in ARCHITECTURES if kind != "gemma4"]
# Two rows beyond the sliding windows of 16 tokens.
ROWS, LENGTH = 2, 40
TOKENS = mx.array([[(i * 7 + row * 31) % 500 + 3 for i in range(LENGTH)] for row in range(ROWS)], mx.int32)
# A position of each row, and short spans that end at different places.
SCORED = ((20, LENGTH + 39), (18, 19, 20, LENGTH + 38, LENGTH + 39))


@cache
def causal_of(kind: str, bits: int | None = None) -> CausalLM:
    """One model for all tests, which leave it as it is."""
    return CausalLM(tiny_model(kind, bits=bits))


def perturbed(causal: CausalLM, first_layer: int = 0):
    """A view that changes every floating parameter of the layers from one on, and of the norm behind them."""
    names = [n for i in range(first_layer, len(causal.layers)) for n in causal.layer_names(i)]
    names += [f"{final_norm(causal.model)}.weight"]
    scales = {n: 1.0 for n in names if mx.issubdtype(causal.slots[n].get().dtype, mx.floating)}
    return causal.view(Direction(1, 2, 0, "sign", scales), 1e-2)


def own_losses(causal: CausalLM) -> np.ndarray:
    """Negative log-likelihood of each next token, [R * (T - 1)], from the model's own logits by numpy."""
    logits = np.array(causal.model(TOKENS)[:, :-1], np.float64)
    logits -= logits.max(-1, keepdims=True)
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(normalised, np.array(TOKENS[:, 1:, None]), axis=-1).reshape(-1)


@pytest.mark.parametrize(
    ("kind", "bits"), [*((kind, None) for kind in ARCHITECTURES), ("gemma4", 4), *(slow(kind, 4) for kind in OTHERS)]
)
def test_losses_by_hidden_states_are_those_of_its_own_logits(kind, bits):
    causal = causal_of(kind, bits)
    assert causal.exposes_hidden
    positions = mx.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)[:, :-1].reshape(-1)
    (hidden,) = causal.hidden([TOKENS], [positions], causal.view())
    (normalisers,) = causal.head.log_normalisers([hidden], causal.view())
    found = normalisers - causal.head.token_logits(hidden, TOKENS[:, 1:].reshape(-1), causal.view())
    assert np.allclose(np.array(found), own_losses(causal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", mostly_slow(ARCHITECTURES, ("qwen3_5", "gemma4", "lfm2", "ministral3")))
def test_states_are_the_same_from_any_layer_on_and_at_scored_positions_alone(kind):
    causal = causal_of(kind)
    assert causal.splits
    # The convolution of the last layer of LFM2 has no keys and values that scored positions could be given.
    assert causal.splits_last == (kind != "lfm2")
    for number in range(len(causal.layers)):
        view = perturbed(causal, number)
        with causal.weights.installed(view, causal.slots):
            whole = causal.body(TOKENS)
            mx.eval(whole)
        prefix = causal.prefix([TOKENS], causal.view(), number)
        assert prefix[0].shape[-1] == causal.wiring.width(number)
        for positions in map(mx.array, SCORED):
            (found,) = causal.hidden([TOKENS], [positions], view, prefix, number)
            assert mx.abs(found - at_positions(positions, whole)).max().item() < 1e-4


@pytest.mark.parametrize("kind", mostly_slow(ARCHITECTURES, ("gemma4",)))
def test_what_frozen_layers_give_is_kept_and_changes_no_bit_of_a_loss(kind):
    causal, batch = causal_of(kind), batch_of(single_token_examples()[:1])
    for layers in (len(causal.layers) - 1, len(causal.layers)):
        view = perturbed(causal, layers)
        losses = losses_of(Scorer(causal, layers), batch, view)
        kept = Scorer(causal, layers, ActivationCache())
        kept.prefix(batch)
        assert kept.cache.nbytes > 0
        assert np.array_equal(losses_of(kept, batch, view), losses)
        assert np.allclose(losses_of(Scorer(causal), batch, view), losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "scope"),
    [("gemma4", "full"), *(slow(kind, "full") for kind in OTHERS), *(slow(kind, "lora") for kind in ARCHITECTURES)],
)
def test_gradients_are_those_of_its_own_logits_with_and_without_checkpointing(kind, scope):
    model, batch = tiny_model(kind), BATCHES["several"]()
    method = on_model(model, scope=scope)
    for name in (n for n in method.trainable.names if n.endswith("lora_b")):
        # At its start B is zero, and the gradient of A with it.
        shape = method.slots[name].get().shape
        method.slots[name].set(0.3 * mx.random.normal(shape, key=mx.random.key(5)))
    loss, gradient = method.gradients(batch)
    method.checkpointing = True
    loss_of_layers, of_layers = method.gradients(batch)
    expected_loss, expected = plain_loss_and_gradient(method, batch)
    assert loss == pytest.approx(expected_loss, abs=1e-5) and loss_of_layers == pytest.approx(expected_loss, abs=1e-5)
    assert difference(gradient, expected) < 1e-4
    assert difference(of_layers, expected) < 1e-4


@pytest.mark.parametrize(
    ("kind", "scope"), [("gemma4", "lora"), ("lfm2", "norms/last-1"), *(slow(kind, "lora") for kind in OTHERS)]
)
def test_mlx_lm_computes_the_same_with_an_adapter_and_with_the_fused_model(kind, scope, tmp_path):
    folder = tiny_folder(tmp_path / "base", kind)
    loaded, config = load_model(folder), RunConfig(model=str(folder), scope=scope).resolved()
    base = set(parameter_slots(loaded.model))
    names = prepare(loaded.model, config).names
    for number, name in enumerate(names):
        slot = slot_of(loaded.model, name)
        slot.set(slot.get() + 0.1 * mx.random.normal(slot.get().shape, key=mx.random.key(number)))
    expected = loaded.model(TOKENS)
    assert not mx.allclose(mlx_lm.load(str(folder))[0](TOKENS), expected, atol=1e-2).item()
    if scope == "lora":
        write_adapter(loaded, config, names, base, tmp_path / "adapter", {})
        adapted, _ = mlx_lm.load(str(folder), adapter_path=str(tmp_path / "adapter"))
        assert mx.allclose(adapted(TOKENS), expected, atol=1e-4).item()
    write_fused(loaded, names, base, tmp_path / "fused", {})
    assert mx.allclose(mlx_lm.load(str(tmp_path / "fused"))[0](TOKENS), expected, atol=1e-4).item()


def test_a_norm_with_a_gate_is_promoted_to_float32_and_computes_the_same():
    model = tiny_model("qwen3_5", dtype=mx.bfloat16)
    layer = model.language_model.model.layers[0].linear_attn
    x, gate = mx.random.normal((2, 5, 16), mx.bfloat16, key=mx.random.key(1))
    expected = layer.norm(x, gate)
    prepare(model, RunConfig(scope="norms"))
    assert layer.norm.weight.dtype == mx.float32
    assert mx.allclose(layer.norm(x, gate), expected, rtol=1e-2, atol=1e-3).item()


def test_a_kernel_without_a_gradient_is_used_only_where_none_is_taken(monkeypatch):
    causal, used, update = causal_of("qwen3_5"), [], qwen3_5.gated_delta_update
    monkeypatch.setattr(
        qwen3_5,
        "gated_delta_update",
        lambda *args, use_kernel: used.append(use_kernel) or update(*args, use_kernel=use_kernel),
    )
    (state,) = causal.prefix([TOKENS], causal.view(), 1)
    causal.layer(0, {}, state, causal.layer_calls(TOKENS, {}))
    causal.logits(TOKENS, causal.view())
    assert used == [True, False, True, True]


def test_a_head_of_262144_softcapped_words_takes_the_memory_of_its_chunks():
    causal = CausalLM(tiny_model("gemma4", vocabulary=262144, hidden=32))
    tokens = mx.tile(TOKENS[:1], (16, 1))
    full_logits = 4 * tokens.size * causal.vocabulary
    positions = mx.arange(tokens.size)[:: tokens.size // 32]
    mx.eval(positions, tokens)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    (hidden,) = causal.hidden([tokens], [positions], causal.view())
    mx.eval(causal.head.log_normalisers([hidden], causal.view()))
    # A chunk of rows, its logits before and after the cap, and part of the next chunk.
    assert mx.get_peak_memory() - before < 4 * CHUNK_BYTES < full_logits / 8
