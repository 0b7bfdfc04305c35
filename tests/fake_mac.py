"""A Mac as far as this package asks the system: its libraries, kernel values and programs, faked for tests on Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import psutil
import pytest

GIB = 1 << 30


class FakeMac:
    """This process on a Mac with 16 GiB, until the test ends.

    Attributes:
        sysctl: the kernel's whole numbers by their names.
        footprints: for each process that can be measured, its footprint and the peak of that, in bytes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.sysctl = {"kern.memorystatus_vm_pressure_level": 1, "iogpu.wired_limit_mb": 0}
        self.footprints = {os.getpid(): (50_000_000, 60_000_000)}
        self._monkeypatch = monkeypatch
        self.set_memory(16 * GIB)
        monkeypatch.setattr(sys, "platform", "darwin")
        # Every library of the system; what it has of functions are the methods below.
        monkeypatch.setattr(ctypes, "CDLL", lambda name: self)

    def set_memory(self, total: int) -> None:
        """Sets the memory of the machine, in bytes, of which half is free."""
        memory = psutil.virtual_memory()._replace(total=total, available=total // 2)
        self._monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def sysctlbyname(self, name: bytes, value: Any, size: Any, *_: Any) -> int:
        """As the function of libSystem, for numbers of 4 bytes."""
        if name.decode() not in self.sysctl:
            return -1
        ctypes.memmove(value, ctypes.byref(ctypes.c_int(self.sysctl[name.decode()])), 4)
        return 0

    def proc_pid_rusage(self, pid: int, version: int, info: Any) -> int:
        """As the function of libproc, in version 4: 16 bytes, and 35 numbers of 8."""
        if pid not in self.footprints or version != 4:
            return -1
        numbers = (ctypes.c_uint64 * 35)()
        numbers[7], numbers[28] = self.footprints[pid]
        ctypes.memmove(ctypes.addressof(info._obj) + 16, numbers, ctypes.sizeof(numbers))
        return 0
