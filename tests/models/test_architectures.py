"""Architectures of today, as tiny random models: each property holds for all of them, without code for any."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from mlxzo.models.causal import CausalLM
from mlxzo.zo.chunks import CHUNK_BYTES
from tests.tiny import ARCHITECTURES, tiny_model

# Two rows beyond the sliding windows of 16 tokens.
TOKENS = mx.array([[(i * 7 + row * 31) % 500 + 3 for i in range(40)] for row in range(2)], mx.int32)


@cache
def causal_of(kind: str, bits: int | None = None) -> CausalLM:
    """One model for all tests, which leave it as it is."""
    return CausalLM(tiny_model(kind, bits=bits))


def own_losses(causal: CausalLM) -> np.ndarray:
    """Negative log-likelihood of each next token, [R * (T - 1)], from the model's own logits by numpy."""
    logits = np.array(causal.model(TOKENS)[:, :-1], np.float64)
    logits -= logits.max(-1, keepdims=True)
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(normalised, np.array(TOKENS[:, 1:, None]), axis=-1).reshape(-1)


@pytest.mark.parametrize("bits", (None, 4))
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_losses_by_hidden_states_are_those_of_its_own_logits(kind, bits):
    causal = causal_of(kind, bits)
    assert causal.exposes_hidden
    rows, length = TOKENS.shape
    positions = mx.arange(rows * length).reshape(rows, length)[:, :-1].reshape(-1)
    (hidden,) = causal.hidden([TOKENS], [positions], causal.view())
    (normalisers,) = causal.head.log_normalisers([hidden], causal.view())
    found = normalisers - causal.head.token_logits(hidden, TOKENS[:, 1:].reshape(-1), causal.view())
    assert np.allclose(np.array(found), own_losses(causal), rtol=0, atol=1e-4)


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
