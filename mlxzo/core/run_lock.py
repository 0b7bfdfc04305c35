"""The lock of a run: a file that a process locks (flock) while it begins, continues, changes or removes the run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from .files import open_regular

_TRIES = 10


def is_locked(path: Path) -> bool:
    """True if a process holds the lock, whatever process that is."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def claim(path: Path) -> int | None:
    """Takes the lock.

    Returns:
        A file descriptor. The lock lasts until every process that has it, by inheritance too, closes it or ends. None:
        another process holds the lock.

    Raises:
        OSError: the file cannot be made.
    """
    for attempt in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run may have been removed in between: a lock on a file without a name excludes no other process.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        # `is_locked` of another process holds the lock for an instant.
        time.sleep(0.01 * attempt)
    return None
