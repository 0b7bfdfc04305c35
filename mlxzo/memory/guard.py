"""A worker's memory, watched from outside: ends a process over its cap that does not end itself. Imports no MLX."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..core.errors import DoesNotFit
from .watch import Gauge

SAMPLE_SECONDS = 0.05
# A worker over its cap notices it itself, a little earlier, and ends cleanly. A stuck one is ended after this time, or
# at once beyond this multiple of its cap.
_GRACE_SECONDS = 1.0
_MARGIN = 1.05
# A cap may be below the memory of Python and MLX alone: the worker has this long to notice and report that.
_START_SECONDS = 20.0


class Guard:
    """Reads the footprint of process `pid` from a thread, and calls `kill` if it stays over `cap_bytes`.

    Args:
        holds: returns True once the process enforces the cap itself.

    Attributes:
        killed: `kill` was called.
        gauge: the readings.

    Raises:
        ProcessLookupError: the process has ended.
    """

    def __init__(self, pid: int, cap_bytes: int, holds: Callable[[], bool], kill: Callable[[], None]):
        self.gauge = Gauge(pid)
        self.killed = False
        self._cap_bytes, self._holds, self._kill = cap_bytes, holds, kill
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops reading."""
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
            except OSError:
                continue
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
