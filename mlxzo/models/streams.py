"""Micro-batches side by side: on a CPU, MLX computes each stream in a thread of its own.

Within a stream only matrix products use several threads, and small ones gain little by it. Two micro-batches at once,
each with products of half the threads, take about three quarters of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..core.blas import SIDE_BY_SIDE, blas_threads, divided_threads
from ..core.device import computes_as_cpu


@contextmanager
def side_by_side() -> Iterator[list[mx.Stream]]:
    """The streams on which micro-batches are computed in turn; their bits do not depend on how many there are.

    The caller evaluates what it computes on them before it leaves.
    """
    if blas_threads() == 1 or not computes_as_cpu():
        yield [mx.default_stream(mx.default_device())]
        return
    with divided_threads(SIDE_BY_SIDE):
        yield _streams()


@functools.cache
def _streams() -> list[mx.Stream]:
    return [mx.new_stream(mx.cpu) for _ in range(SIDE_BY_SIDE)]
