"""Float32 products in TF32, as GPUs compute them by default: emulated, and switched off before MLX starts."""

from __future__ import annotations

import os

import mlx.core as mx
import pytest

from mlxzo.core.mlx_startup import prepare_mlx
from mlxzo.models.causal import CausalLM
from tests.tiny import tiny_model


def rounded(value):
    """Float32 values with 10 bits of mantissa, as the inputs of a TF32 product are; other values as they are."""
    if not isinstance(value, mx.array) or value.dtype != mx.float32:
        return value
    return ((value.view(mx.uint32) + 0x1000) & 0xFFFFE000).view(mx.float32)


@pytest.fixture
def tf32_gpu(monkeypatch):
    """Products as a GPU with TF32 computes them, which MLX lets it do unless MLX_ENABLE_TF32 is 0."""

    def emulate(owner, name):
        exact = getattr(owner, name)

        def product(*values, **options):
            if os.environ.get("MLX_ENABLE_TF32", "1") != "0":
                values = [rounded(value) for value in values]
            return exact(*values, **options)

        monkeypatch.setattr(owner, name, product)

    emulate(mx.array, "__matmul__")
    emulate(mx.fast, "scaled_dot_product_attention")
    for name in ("matmul", "addmm", "quantized_matmul"):
        emulate(mx, name)


def found(model):
    causal = CausalLM(model)
    return causal.exposes_hidden, causal.splits, causal.splits_last


@pytest.mark.parametrize("kind, bits", [("llama", None), ("gemma3", 4)])
def test_a_model_runs_in_parts_where_the_gpu_has_tf32(tf32_gpu, monkeypatch, kind, bits):
    monkeypatch.delenv("MLX_ENABLE_TF32")
    assert found(tiny_model(kind, bits=bits)) != (True, True, True)
    prepare_mlx()
    assert found(tiny_model(kind, bits=bits)) == (True, True, True)
