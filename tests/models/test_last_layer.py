"""The last layer at the scored positions gives what the whole layer gives there, and is run whole where it cannot."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxzo.models import last_layer
from mlxzo.models.causal import CausalLM
from mlxzo.models.last_layer import Spans, at_positions
from mlxzo.zo.perturb import Direction
from tests.tiny import tiny_config, tiny_model

ROWS, LENGTH = 3, 40
TOKENS = mx.array([[i * 7 % 500 + 3 + j for i in range(LENGTH)] for j in range(ROWS)], mx.int32)
# One position of a row, several, and those of rows of different length; beyond gemma's window of 16 tokens.
POSITIONS = {
    "one": [20, LENGTH + 39, 2 * LENGTH + 3],
    "several": [12, 13, 14, LENGTH + 39, 2 * LENGTH + 20, 2 * LENGTH + 21],
    "out of order": [2 * LENGTH + 20, LENGTH + 5, LENGTH + 3, 7],
}
MODELS = {
    "llama": {"kind": "llama"},
    "llama-4bit": {"kind": "llama", "bits": 4},
    "llama-one-layer": {"kind": "llama", "layers": 1},
    "qwen3": {"kind": "qwen3"},
    "gemma3": {"kind": "gemma3"},
    "gemma3-six-layers": {"kind": "gemma3", "layers": 6},
    "gemma3-4bit": {"kind": "gemma3", "bits": 4},
}


def whole(causal: CausalLM, positions: mx.array, view) -> mx.array:
    """The states at some positions, from a call of the model's own body."""
    with causal.weights.installed(view, causal.slots):
        hidden = causal.body(TOKENS)
        mx.eval(hidden)
    return at_positions(positions, hidden)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that `output_at` gives to a layer."""
    seen: list[tuple[int, ...]] = []
    call = last_layer._call

    def spy(layer, hidden, *args, **kwargs):
        seen.append(hidden.shape)
        return call(layer, hidden, *args, **kwargs)

    monkeypatch.setattr(last_layer, "_call", spy)
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", (None, mx.float32))
def test_states_equal_those_of_the_whole_model(name, dtype, calls):
    causal = CausalLM(tiny_model(**MODELS[name]), dtype)
    assert causal.splits_last
    floating = {name: 1.0 for name, slot in causal.slots.items() if mx.issubdtype(slot.get().dtype, mx.floating)}
    for view in (causal.view(), causal.view(Direction(1, 2, 0, "sign", floating), 1e-3)):
        for positions in map(mx.array, POSITIONS.values()):
            expected, calls[:] = whole(causal, positions, view), []
            for number in {0, len(causal.layers) - 1}:
                prefix = causal.prefix([TOKENS], view, number)
                (found,) = causal.hidden([TOKENS], [positions], view, prefix, number)
                assert mx.abs(found - expected).max().item() < 2e-5
            # The second call has as many positions a row as the longest span.
            longest = Spans.of(np.array(positions), ROWS, LENGTH).length
            assert calls[-2:] == [(ROWS, LENGTH, 64), (ROWS, longest, 64)]


def test_micro_batches_of_several_shapes_go_through_together():
    causal, view = CausalLM(tiny_model()), CausalLM(tiny_model()).view()
    tokens = [TOKENS, TOKENS[:1, :24]]
    positions = [mx.array(POSITIONS["several"]), mx.array([23])]
    together = causal.hidden(tokens, positions, view)
    for number, states in enumerate(together):
        (alone,) = causal.hidden(tokens[number : number + 1], positions[number : number + 1], view)
        assert mx.array_equal(states, alone).item()


def test_long_spans_are_read_by_the_whole_layer(calls):
    causal = CausalLM(tiny_model())
    positions, calls[:] = mx.arange(5, LENGTH), []
    (found,) = causal.hidden([TOKENS], [positions], causal.view())
    assert mx.array_equal(found, whole(causal, positions, causal.view())).item()
    assert calls == []


class Block(nn.Module):
    """A layer that reads no cache: each position sees the mean of those before."""

    use_sliding = False

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.inner = layer.mlp

    def __call__(self, x: mx.array, mask=None, cache=None) -> mx.array:
        count = mx.arange(1, x.shape[1] + 1)[:, None]
        return x + self.inner(x.cumsum(axis=1) / count)


class Forgetful(nn.Module):
    """A layer that gives its queries the positions of a row's beginning, whatever the cache says."""

    use_sliding = False

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.inner = layer

    def __call__(self, x: mx.array, mask=None, cache=None) -> mx.array:
        if cache is not None:
            cache = SimpleNamespace(offset=0, update_and_fetch=cache.update_and_fetch)
        return self.inner(x, mask, cache)


@pytest.mark.parametrize("kind", (Block, Forgetful))
def test_a_layer_that_does_not_agree_is_run_whole(kind):
    model = tiny_model()
    model.model.layers[-1] = kind(model.model.layers[-1])
    causal = CausalLM(model)
    assert causal.splits and not causal.splits_last
    positions = mx.array(POSITIONS["several"])
    (found,) = causal.hidden([TOKENS], [positions], causal.view())
    assert mx.array_equal(found, whole(causal, positions, causal.view())).item()


@pytest.mark.parametrize("kind", ("qwen2", "phi3", "olmo2", "starcoder2"))
def test_architectures_of_mlx_lm_need_no_code_of_their_own(kind):
    from mlx_lm.utils import _get_classes

    model_class, arguments = _get_classes(config := tiny_config("llama") | {"model_type": kind, "norm_epsilon": 1e-5})
    causal = CausalLM(model_class(arguments.from_dict(config)))
    assert causal.splits and causal.splits_last
    positions = mx.array(POSITIONS["several"])
    (found,) = causal.hidden([TOKENS], [positions], causal.view())
    assert mx.abs(found - whole(causal, positions, causal.view())).max().item() < 2e-5
