"""The command line in this process: what a test calls where the process itself is not what is tested."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from unittest import mock

from mlxzo.cli.main import main


def mlxzo(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `mlxzo ARGUMENTS`; returns its exit code and what it printed, as `subprocess.run` does.

    Runs are trained by real workers, in processes of their own.
    """
    words = [str(argument) for argument in arguments]
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode()))),
    ):
        code = main(words)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def once(ready: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` beside the block once `ready` returns something, or after 90 s; fails where the block ends before."""
    ended = threading.Event()

    def wait() -> None:
        limit = time.monotonic() + 90
        while not ready() and time.monotonic() < limit:
            if ended.wait(0.02):
                return
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
        assert not thread.is_alive(), "it ended before"
    finally:
        ended.set()
        thread.join()


def ctrl_c() -> None:
    """Presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
