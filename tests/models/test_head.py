"""The head against float64 arithmetic on its whole matrix."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxzo.models import lazy_layers
from mlxzo.models.head import Head, LogitTransform
from mlxzo.zo.perturb import View

VOCABULARY, WIDTH = 150, 64


def head(kind: str, cap: float | None = None) -> tuple[Head, np.ndarray, np.ndarray]:
    """A head, its effective matrix [V, D] and its bias [V]."""
    mx.random.seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=kind == "bias")
    linear.weight = mx.random.normal((VOCABULARY, WIDTH)) * 0.2
    module = linear.to_quantized(group_size=32, bits=4) if kind == "4-bit" else linear
    rows = mx.dequantize(module.weight, module.scales, module.biases, 32, 4) if kind == "4-bit" else module.weight
    bias = np.array(linear.bias, np.float64) if kind == "bias" else np.zeros(VOCABULARY)
    return Head(module, "lm_head", LogitTransform(0.5, cap)), np.array(rows, np.float64), bias


def exact(hidden: np.ndarray, rows: np.ndarray, bias: np.ndarray, cap: float | None) -> np.ndarray:
    logits = 0.5 * (hidden @ rows.T + bias)
    return np.log(np.exp(logits if cap is None else cap * np.tanh(logits / cap)).sum(axis=1))


@pytest.mark.parametrize(("kind", "cap"), [("plain", None), ("bias", 3.0), ("4-bit", None)])
def test_the_linear_normaliser_is_the_normaliser_to_first_order(kind, cap, monkeypatch):
    # Several chunks, the last of them smaller.
    monkeypatch.setattr(lazy_layers, "CHUNK_BYTES", 4 * WIDTH * 40)
    module, rows, bias = head(kind, cap)
    rng = np.random.default_rng(1)
    states = [rng.standard_normal((n, WIDTH)).astype(np.float32) for n in (5, 3)]
    view = View(mx.float32)
    found = module.linear_normalisers([mx.array(hidden) for hidden in states], view)
    values = module.log_normalisers([mx.array(hidden) for hidden in states], view)
    for hidden, linear, value in zip(states, found, values, strict=True):
        assert mx.array_equal(linear.value, value).item()
        np.testing.assert_allclose(np.array(linear.value), exact(hidden, rows, bias, cap), rtol=1e-5)
        step = rng.standard_normal(hidden.shape)
        eps = 1e-4
        ahead, behind = (exact(hidden + sign * eps * step, rows, bias, cap) for sign in (1, -1))
        near = np.array(linear.at(mx.array(hidden + step)), np.float64) - np.array(linear.value, np.float64)
        np.testing.assert_allclose(near, (ahead - behind) / (2 * eps), rtol=1e-4, atol=1e-4)
