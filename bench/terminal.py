"""The terminal app in a pseudo-terminal of its own, as a user has it: keys in, bytes out, processor time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from mlxzo.core.child_process import worker_environment

_QUIET_SECONDS = 0.3
_LIMIT_SECONDS = 120.0


class Terminal:
    """`mlxzo tui` with some arguments, in a terminal of a size."""

    def __init__(self, arguments: Sequence[str], size: tuple[int, int], folder: Path):
        self.began = time.perf_counter()
        self.pid, self._file = pty.fork()
        if not self.pid:
            os.chdir(folder)
            environment = {**worker_environment(), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
            command = [sys.executable, "-P", "-m", "mlxzo", "tui", *arguments]
            os.execve(sys.executable, command, environment)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self._process = psutil.Process(self.pid)

    def wait_for(self, text: str) -> float:
        """Reads until a text has been written; returns the seconds since the app was started."""
        seen = b""
        while text.encode() not in seen:
            if not (block := self._read(_LIMIT_SECONDS)):
                raise TimeoutError(f"{text!r} was not written within {_LIMIT_SECONDS:g} s")
            seen += block
        return time.perf_counter() - self.began

    def settle(self) -> None:
        """Reads until nothing has been written for a while."""
        limit = time.perf_counter() + 20 * _QUIET_SECONDS
        while self._read(_QUIET_SECONDS) and time.perf_counter() < limit:
            pass

    def send(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def press(self, key: str) -> float:
        """Seconds from a key to the first bytes of what is drawn for it, on a screen that has come to rest."""
        self.settle()
        began = time.perf_counter()
        self.send(key)
        if not self._read(_LIMIT_SECONDS):
            raise TimeoutError(f"{key!r} has drawn nothing")
        return time.perf_counter() - began

    def watch(self, seconds: float) -> None:
        """Takes what is written for some time, as a terminal does."""
        limit = time.perf_counter() + seconds
        while (left := limit - time.perf_counter()) > 0:
            self._read(left)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the app so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._file)

    def _read(self, seconds: float) -> bytes:
        if not select.select([self._file], [], [], seconds)[0]:
            return b""
        try:
            return os.read(self._file, 1 << 20)
        except OSError:
            # The app has ended.
            return b""


@contextlib.contextmanager
def terminal(*arguments: str, size: tuple[int, int] = (120, 40), folder: Path) -> Iterator[Terminal]:
    """A terminal with the app in it, which is closed at the end."""
    opened = Terminal(arguments, size, folder)
    try:
        yield opened
    finally:
        opened.close()
