"""Shared by all tests: a fast BLAS before MLX, a cache folder of their own, and no network unless asked for."""

from __future__ import annotations

import os

import pytest

# Before huggingface_hub is imported, which reads it once. HF_HUB_OFFLINE=0 lets the slow tests use the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: threads that wait for a busy core would make all of them crawl.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

from tests.fake_mac import FakeMac  # noqa: E402
from tests.warm_workers import warm_workers  # noqa: E402

_AS_STARTED = {name: os.environ.get(name) for name in ("MLXZO_HOME", "OPENBLAS_NUM_THREADS")}


@pytest.fixture(scope="session", autouse=True)
def temporary_home(tmp_path_factory):
    """The cache folder of the fast tests, so that they never touch the user's."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXZO_HOME", str(home))
        # For child processes: their models are tiny, and threads that wait for a busy core make them crawl.
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield home


@pytest.fixture(scope="session", autouse=True)
def _warm_workers(temporary_home):
    with warm_workers():
        yield


@pytest.fixture
def mac(monkeypatch):
    """This process on a Mac, as far as it asks the system."""
    return FakeMac(monkeypatch)


@pytest.fixture(autouse=True)
def _shared_home(request, monkeypatch):
    """Slow tests share the user's cache folder, so that a model is downloaded once, and use every core."""
    if not {"slow", "long"} & set(request.keywords):
        return
    for name, value in _AS_STARTED.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
