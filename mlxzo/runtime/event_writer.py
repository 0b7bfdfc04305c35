"""The event stream of a worker: events.jsonl and stdout."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from pathlib import Path

from ..core import events

_OFFER_SECONDS = 0.01
# A resumed run depends on these: they are flushed to the disk at once. A power failure may take the others of the last
# seconds.
_DURABLE = (events.Evaluated, events.Saved, events.Finished, events.Failed)


class EventWriter:
    """Appends events to a file, and repeats them on stdout for as long as that is read. Thread-safe."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        # A line that an interrupted write left incomplete must not swallow the next one.
        if not _ends_a_line(path):
            self._file.write(b"\n")
        self._pipe = True
        self._lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            # Progress is not kept: it would make up most of the file.
            self._write(event, not isinstance(event, events.Progress), self._pipe)

    def offer(self, event: events.Event, kept: bool) -> None:
        """Writes an event unless another thread holds the lock, the pipe is full or the disk is.

        A full disk is left to the run's own events and states to report: it must not end the thread that holds the cap.

        Args:
            kept: write it to the file as well.
        """
        if self._lock.acquire(timeout=_OFFER_SECONDS):
            try:
                # A pipe that is ready takes a line of up to 4096 bytes at once.
                with contextlib.suppress(OSError):
                    self._write(event, kept, self._pipe and bool(select.select([], [sys.stdout], [], 0)[1]))
            finally:
                self._lock.release()

    def _write(self, event: events.Event, kept: bool, shown: bool) -> None:
        line = events.to_json(event, time.time()).encode() + b"\n"
        if kept:
            self._file.write(line)
            if isinstance(event, _DURABLE):
                os.fsync(self._file.fileno())
        if shown:
            try:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            except OSError:
                self._pipe = False
                # Otherwise Python flushes again at exit, and reports the error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ends_a_line(path: Path) -> bool:
    """True if a file is empty or ends with a newline."""
    with path.open("rb") as file:
        return not file.seek(0, os.SEEK_END) or (file.seek(-1, os.SEEK_END) >= 0 and file.read() == b"\n")
