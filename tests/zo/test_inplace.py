"""Rewriting tensors in place, in chunks of rows."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx

from mlxzo.zo import inplace


def test_a_piece_is_finished_everywhere_before_the_tensor_changes(monkeypatch):
    """On Metal a command buffer still holds what it has read when `mx.eval` returns; then MLX copies the tensor."""
    values = mx.arange(24, dtype=mx.float32).reshape(6, 4)
    held, waited = SimpleNamespace(tensor=values), []

    def set_to(value):
        held.tensor = value

    slot = SimpleNamespace(get=lambda: held.tensor, set=set_to)
    monkeypatch.setattr(inplace, "CHUNK_BYTES", 2 * 4 * 4)
    synchronize = mx.synchronize
    monkeypatch.setattr(mx, "synchronize", lambda: waited.append(held.tensor[:, 0].tolist()) or synchronize())
    inplace.rewrite([slot], lambda rows, piece: [piece + 100])
    assert waited == [[0, 4, 8, 12, 16, 20], [100, 104, 8, 12, 16, 20], [100, 104, 108, 112, 16, 20]]
    assert mx.array_equal(held.tensor, mx.arange(100, 124).reshape(6, 4))
