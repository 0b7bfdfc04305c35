"""Memory in use, in bytes: by MLX, by a process as the operating system counts it, and by the machine.

MLX's peak excludes its cache of freed buffers; the memory taken from the machine is the footprint, or active + cache.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MlxMemory:
    """MLX's counters: live arrays, their peak, and freed buffers kept for reuse."""

    active_bytes: int
    peak_bytes: int
    cache_bytes: int


def mlx_memory() -> MlxMemory:
    """MLX's counters now. Imports MLX."""
    import mlx.core as mx

    return MlxMemory(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory())


def footprint_bytes(pid: int | None = None) -> int:
    """Memory that the operating system charges a process for: phys_footprint (Activity Monitor) on macOS, else RSS.

    Args:
        pid: the process; None is this one.

    Raises:
        ProcessLookupError: there is no such process, or it may not be read.
    """
    pid = os.getpid() if pid is None else pid
    return _mac_footprint(pid)[0] if sys.platform == "darwin" else _resident_bytes(pid)


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error as error:
        raise ProcessLookupError(f"process {pid} cannot be measured: {error}") from None


class FootprintReader:
    """Reads the footprint of one process, cheaply enough for many times a second.

    Args:
        pid: the process; None is this one.

    Raises:
        ProcessLookupError: there is no such process, or it may not be read; `read` raises it, too.
    """

    def __init__(self, pid: int | None = None):
        self._pid = pid
        self._status = None
        if sys.platform == "linux":
            try:
                self._status = Path(f"/proc/{'self' if pid is None else pid}/status").open("rb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise ProcessLookupError(f"process {pid} cannot be measured: {error}") from None

    def read(self) -> tuple[int, int | None]:
        """The footprint now (see `footprint_bytes`), and on macOS and Linux its peak, else None."""
        if sys.platform == "darwin":
            return _mac_footprint(os.getpid() if self._pid is None else self._pid)
        if self._status is None:
            return footprint_bytes(self._pid), None
        try:
            status = os.pread(self._status.fileno(), 1 << 14, 0)
            highest, now = (int(status.split(key, 1)[1].split(None, 1)[0]) * 1024 for key in (b"VmHWM:", b"VmRSS:"))
        except (OSError, IndexError):
            # The status of a zombie lacks these lines.
            raise ProcessLookupError(f"process {self._pid} is gone") from None
        return now, highest

    def close(self) -> None:
        if self._status is not None:
            self._status.close()


# The version of `struct rusage_info` that has the peak.
_RUSAGE_INFO_V4 = 4


class _RusageInfoV4(ctypes.Structure):
    """`struct rusage_info_v4` of <sys/resource.h>."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "user_time",
                "system_time",
                "package_idle_wakeups",
                "interrupt_wakeups",
                "page_ins",
                "wired_size",
                "resident_size",
                "phys_footprint",
                "start_time",
                "exit_time",
                *("child_user_time", "child_system_time", "child_package_idle_wakeups", "child_interrupt_wakeups"),
                *("child_page_ins", "child_elapsed_time", "disk_bytes_read", "disk_bytes_written"),
                *("cpu_time_default", "cpu_time_maintenance", "cpu_time_background", "cpu_time_utility"),
                *("cpu_time_legacy", "cpu_time_user_initiated", "cpu_time_user_interactive"),
                *("billed_system_time", "serviced_system_time", "logical_writes", "lifetime_max_phys_footprint"),
                *("instructions", "cycles", "billed_energy", "serviced_energy"),
                *("interval_max_phys_footprint", "runnable_time"),
            )
        ),
    )


def _mac_footprint(pid: int) -> tuple[int, int]:
    """The footprint now, and its peak."""
    info = _RusageInfoV4()
    library = ctypes.CDLL("/usr/lib/libproc.dylib")
    if library.proc_pid_rusage(pid, _RUSAGE_INFO_V4, ctypes.byref(info)) != 0:
        raise ProcessLookupError(f"process {pid} cannot be measured")
    return info.phys_footprint, info.lifetime_max_phys_footprint


def system_memory() -> tuple[int, int]:
    """The machine's memory, and the part available to programs without swapping."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def swap_used_bytes() -> int:
    """Swap in use on the machine."""
    import psutil

    return psutil.swap_memory().used


def memory_pressure() -> int | None:
    """macOS's memory pressure: 1 normal, 2 warning, 4 critical; None elsewhere."""
    return _sysctl(b"kern.memorystatus_vm_pressure_level")


def gpu_working_set_bytes() -> int | None:
    """Memory that macOS lets the GPU hold at once; None elsewhere.

    It is the limit that the user has set, or about the default. MLX knows the exact value.
    """
    if sys.platform != "darwin":
        return None
    if limit_mb := _sysctl(b"iogpu.wired_limit_mb"):
        return limit_mb << 20
    return default_working_set_bytes(system_memory()[0])


def default_working_set_bytes(total_bytes: int) -> int:
    """About Metal's `recommendedMaxWorkingSetSize` on a Mac of so much memory, as Macs report it: two thirds below
    36 GiB, three quarters from there on."""
    return int(total_bytes * (2 / 3 if total_bytes < 36 << 30 else 3 / 4))


def _sysctl(name: bytes) -> int | None:
    """A whole number that the kernel of macOS reports; None if it has none of that name, and elsewhere."""
    if sys.platform != "darwin":
        return None
    # Of 4 or 8 bytes, the lower ones first.
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint64))
    failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def return_freed_memory() -> None:
    """Returns freed memory from the C library to the system: hundreds of MB after reading a tokenizer."""
    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        library.malloc_zone_pressure_relief(None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):  # glibc; other libraries keep little
        library.malloc_trim(ctypes.c_size_t(0))
