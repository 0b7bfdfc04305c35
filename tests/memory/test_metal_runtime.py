"""On a Mac the runtime's memory is measured by runs and counted by later predictions; elsewhere it is a constant."""

import os

import mlx.core as mx
import pytest

from mlxzo.core.config import RunConfig
from mlxzo.memory import metal_runtime
from mlxzo.memory.coefficients import coefficient
from mlxzo.memory.estimate import estimate
from mlxzo.memory.metal_runtime import record_runtime, runtime_bytes
from mlxzo.memory.sizes import Data
from mlxzo.models.registry import find
from mlxzo.models.resolve import shape_of_entry

CONSTANT = int(coefficient("runtime_bytes"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXZO_HOME", str(tmp_path / "home"))


def leave(mac, runtime: int) -> None:
    """The end of a run whose runtime takes so many bytes, with a tokenizer of 1,000 words."""
    arrays = mx.get_active_memory() + mx.get_cache_memory()
    mac.footprints[os.getpid()] = (arrays + runtime + 1000 * int(coefficient("tokenizer_bytes_a_word")), 0)
    record_runtime(1000)


def predicted() -> int:
    shape = shape_of_entry(find("smollm2-135m"))
    return estimate(shape, RunConfig(), Data.uniform(64), on_cpu=False).bytes_of("runtime")


def test_a_prediction_counts_the_least_that_runs_on_this_mac_have_shown(mac):
    assert predicted() == CONSTANT
    leave(mac, 400_000_000)
    assert predicted() == 400_000_000
    leave(mac, 500_000_000)
    assert predicted() == 400_000_000
    leave(mac, 300_000_000)
    assert predicted() == 300_000_000
    # What was measured on Linux is there on a Mac as well.
    leave(mac, 50_000_000)
    assert predicted() == CONSTANT


@pytest.mark.parametrize("text", ["", "[]", '{"mlx": "0.1", "runtime_bytes": 1000000000}', '{"runtime_bytes": "many"}'])
def test_a_file_that_is_damaged_or_of_another_release_counts_for_nothing(mac, text):
    leave(mac, 400_000_000)
    metal_runtime._path().write_text(text)
    assert runtime_bytes() == CONSTANT
    leave(mac, 300_000_000)
    assert runtime_bytes() == 300_000_000


def test_no_run_elsewhere_leaves_a_file():
    record_runtime(1000)
    assert not metal_runtime._path().exists()
