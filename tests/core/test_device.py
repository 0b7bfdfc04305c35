"""One switch lays the work out for a GPU, in this process and in its children: shapes, compute dtype and prediction."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.device import COMPUTE_AS, _is_cpu_installed, computes_as_cpu
from mlxzo.engine.session import compute_dtype, micro_batch_shapes
from mlxzo.memory.estimate import Predictor
from mlxzo.memory.sizes import Data
from mlxzo.models.architecture import of_config
from mlxzo.models.streams import side_by_side
from tests.threads import matrix_products_with
from tests.tiny import tiny_config


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_everything_that_depends_on_the_kind_of_device_follows_the_switch(device, monkeypatch):
    monkeypatch.setenv(COMPUTE_AS, device)
    on_cpu = device == "cpu"
    assert computes_as_cpu() == on_cpu
    assert compute_dtype() == (mx.float32 if on_cpu else None)
    assert (micro_batch_shapes(RunConfig()).frozen_tokens is None) == on_cpu
    shape = of_config(tiny_config("llama", dtype="bfloat16"), "tiny")
    assert Predictor(shape, RunConfig(), Data.uniform(64)).c == (4 if on_cpu else 2)
    with matrix_products_with(2), side_by_side() as streams:
        assert len(streams) == (2 if on_cpu else 1)


def test_without_the_switch_the_device_is_that_of_mlx(monkeypatch):
    monkeypatch.delenv(COMPUTE_AS, raising=False)
    assert computes_as_cpu() == (mx.default_device().type == mx.DeviceType.cpu)


def test_a_process_without_mlx_knows_the_device_and_imports_nothing():
    code = "import sys; from mlxzo.core.device import computes_as_cpu as f; print(f(), 'mlx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(computes_as_cpu()), "False"]


def test_a_mac_computes_on_its_gpu(mac, monkeypatch):
    monkeypatch.delenv(COMPUTE_AS, raising=False)
    monkeypatch.delitem(sys.modules, "mlx.core")
    _is_cpu_installed.cache_clear()
    assert not computes_as_cpu()
    _is_cpu_installed.cache_clear()
