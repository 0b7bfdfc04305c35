"""A worker's memory from outside: ends a process that is over its cap and does not end by itself. Imports no MLX."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..core.errors import DoesNotFit
from .watch import Gauge

SAMPLE_SECONDS = 0.05
# A worker over its cap sees it itself, a little earlier, and ends cleanly. One that is stuck has this long, unless
# it goes beyond this share of its cap.
_GRACE_SECONDS = 1.0
_MARGIN = 1.05
# A cap may be below what Python and MLX take alone. Until the worker has come to see that, it has this long.
_START_SECONDS = 20.0


class Guard:
    """Reads the footprint of process `pid` from a thread, and calls `kill` where it stays over `cap_bytes`.

    Args:
        holds: whether the process says that it is held to the cap.

    Attributes:
        killed: it did.
        gauge: what it read.

    Raises:
        ProcessLookupError: there is no such process any more.
    """

    def __init__(self, pid: int, cap_bytes: int, holds: Callable[[], bool], kill: Callable[[], None]):
        self.gauge = Gauge(pid)
        self.killed = False
        self._cap_bytes, self._holds, self._kill = cap_bytes, holds, kill
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Reads no more."""
        self._done.set()
        self._thread.join()
        self.gauge.close()

    def exceeded(self, kept: str) -> DoesNotFit:
        """The error for the run that was ended (see `Gauge.exceeded`)."""
        return self.gauge.exceeded(self._cap_bytes, kept)

    def _run(self) -> None:
        over_since: float | None = None
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                seen = self.gauge.read()
            except ProcessLookupError:
                return
            if seen <= self._cap_bytes:
                over_since = None
                continue
            over_since = time.monotonic() if over_since is None else over_since
            over_seconds = time.monotonic() - over_since
            if self._holds():
                late = over_seconds > _GRACE_SECONDS or seen > _MARGIN * self._cap_bytes
            else:
                late = over_seconds > _START_SECONDS
            if late:
                self.killed = True
                self._kill()
                return
