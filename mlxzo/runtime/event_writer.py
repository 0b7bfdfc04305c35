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
from ..core.files import append, sync_to_disk

_OFFER_SECONDS = 0.01
# A resumed run depends on these: they are flushed to the disk at once. A power failure may take the others of the last
# seconds.
_DURABLE = (events.Evaluated, events.Saved, events.Finished, events.Failed)


class EventWriter:
    """Appends events to a file, and repeats them on stdout for as long as that is read. Thread-safe."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # A line that an interrupted write left incomplete must not swallow the next one.
        size = os.fstat(self._file).st_size
        self._begin = b"\n" if size and os.pread(self._file, 1, size - 1) != b"\n" else b""
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
        problem = None
        if kept:
            try:
                self._keep(line, durable=isinstance(event, _DURABLE))
            except OSError as error:
                # The pipe may still take the event, the last one above all.
                problem = error
        if shown:
            try:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            except OSError:
                self._pipe = False
                # Otherwise Python flushes again at exit, and reports the error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if problem is not None:
            raise problem

    def _keep(self, line: bytes, *, durable: bool) -> None:
        append(self._file, self._begin + line)
        self._begin = b""
        if durable:
            sync_to_disk(self._file)
