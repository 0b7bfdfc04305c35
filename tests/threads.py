"""Tests run with one BLAS thread each, so that several can run at a time; here one has more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlxzo.core import blas


@contextmanager
def matrix_products_with(threads: int) -> Iterator[None]:
    """Lets matrix products use so many threads, as on a machine with so many cores; skips without an OpenBLAS."""
    before = blas.blas_threads()
    if not blas._loaded:
        pytest.skip("no OpenBLAS is loaded")
    set_threads = blas._loaded[-1].openblas_set_num_threads
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)
