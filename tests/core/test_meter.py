"""Memory readings: of this process, of another, of MLX."""

import ctypes
import os
import subprocess
import sys

import mlx.core as mx
import pytest

from mlxzo.core import meter
from mlxzo.core.meter import (
    FootprintReader,
    footprint_bytes,
    gpu_working_set_bytes,
    memory_pressure,
    mlx_memory,
    system_memory,
)
from mlxzo.memory.watch import Gauge


def test_the_footprint_grows_with_what_is_held():
    # In a process of its own: here, what earlier tests left may be freed at any moment.
    program = """if True:
        from mlxzo.core.meter import footprint_bytes
        before = footprint_bytes()
        held = b"x" * 50_000_000
        print(footprint_bytes() - before)
    """
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 40_000_000 < int(grown) < 60_000_000
    assert footprint_bytes() < system_memory()[0]


def test_another_process_can_be_measured_and_one_that_is_gone_cannot():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert footprint_bytes(child.pid) > 0
    with pytest.raises(ProcessLookupError):
        footprint_bytes(child.pid)


def test_a_reader_agrees_with_a_single_reading_and_remembers_more():
    program = "x = b'x' * 50_000_000; del x; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        reader = FootprintReader(child.pid)
        assert child.stdout.readline()
        if sys.platform == "linux":
            now, most = reader.read()
            assert now < 40_000_000 and most > 50_000_000
        assert reader.read()[0] == pytest.approx(footprint_bytes(child.pid), rel=0.02)
    with pytest.raises(ProcessLookupError):
        reader.read()
    reader.close()


def test_mlx_counts_what_is_alive_and_the_peak():
    before = mlx_memory()
    array = mx.zeros((1000, 1000))
    mx.eval(array)
    after = mlx_memory()
    assert after.active_bytes - before.active_bytes >= 4_000_000
    assert after.peak_bytes >= after.active_bytes


def test_a_mac_tells_its_pressure_and_what_its_gpu_can_hold(mac):
    assert memory_pressure() == 1
    for total, share in ((8 << 30, 2 / 3), (64 << 30, 3 / 4)):
        mac.set_memory(total)
        assert gpu_working_set_bytes() == int(share * total)
    mac.sysctl["iogpu.wired_limit_mb"] = 57344
    assert gpu_working_set_bytes() == 57344 << 20
    mac.sysctl.clear()
    assert memory_pressure() is None and gpu_working_set_bytes() == 48 << 30


def test_the_footprint_of_a_process_on_a_mac_comes_with_its_peak(mac):
    assert ctypes.sizeof(meter._RusageInfoV4) == 16 + 35 * 8
    assert footprint_bytes() == 50_000_000
    reader = FootprintReader()
    assert reader.read() == (50_000_000, 60_000_000)
    gauge = Gauge()
    assert gauge.read() == 50_000_000
    # What a peak between two readings took counts as well.
    mac.footprints[os.getpid()] = (55_000_000, 90_000_000)
    assert (gauge.read(), gauge.peak_bytes) == (90_000_000, 90_000_000)
    mac.footprints.clear()
    with pytest.raises(ProcessLookupError):
        reader.read()


@pytest.mark.skipif(sys.platform == "darwin", reason="elsewhere than on a Mac")
def test_other_systems_have_no_such_values():
    assert memory_pressure() is None and gpu_working_set_bytes() is None
