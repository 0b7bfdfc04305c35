"""Workers that start at once, on Linux: forked from a process that has imported what a worker imports.

The imports, transformers above all, take most of the time that a worker takes to start, and the tests start many.
A forked worker has an environment, a session, pipes and an exit code of its own, as any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from mlxzo.runtime import supervisor

WARM = ("mlx_lm.models.llama", "mlxzo.engine.trainer", "mlxzo.runtime.worker")
WORKERS = ("mlxzo.runtime.worker", "tests.eager_worker")
_PR_SET_CHILD_SUBREAPER = 36
# Read once, by libraries that the server has imported: a worker for which they differ is started cold.
_READ_AT_IMPORT = ("HF_", "MLX_DISABLE_COMPILE", "OPENBLAS_", "PYTHON")


class ForkedWorker:
    """A forked worker, with what its starters use of `subprocess.Popen`. Safe to use from several threads."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        # A signal handler may call this in the middle of another call, and must not wait for it.
        if self.returncode is None and self._lock.acquire(blocking=False):
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self._lock.release()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() >= limit:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Server:
    """The process that forks workers; it ends with this one."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = _read_at_import(environment)
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether a worker of this environment would import as the server did."""
        return _read_at_import(environment) == self._environment

    def fork(self, words: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]) -> int:
        """Starts a worker; returns its process id.

        Args:
            words: its module, and the arguments.
            descriptors: its standard input, output and error, and others that it holds until it ends.
        """
        job = json.dumps({"words": list(words), "environment": dict(environment), "folder": str(Path.cwd())})
        library = ctypes.CDLL(None)
        with self._lock:
            # The process between the server and the worker ends at once, which makes the worker a child of this one.
            library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._connection, [job.encode()], list(descriptors))
                pid = int(self._connection.recv(64))
                self._connection.recv(64)
            finally:
                library.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return pid


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}


@cache
def _server(pid: int) -> Server:
    return Server(supervisor.worker_environment())


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | ForkedWorker:
    """Starts a process as `subprocess.Popen` does, and a worker from the server.

    Of the options a worker takes stdout (a descriptor), stderr (a file), env and pass_fds; it has no stdin.
    """
    if list(command[:3]) != [sys.executable, "-P", "-m"] or command[3] not in WORKERS or sys.platform != "linux":
        return subprocess.Popen(command, **options)
    server = _server(os.getpid())
    if not server.suits(options["env"]):
        return subprocess.Popen(command, **options)
    with Path(os.devnull).open("rb") as nothing:
        descriptors = (nothing.fileno(), options["stdout"], options["stderr"].fileno(), *options.get("pass_fds", ()))
        return ForkedWorker(server.fork(command[3:], options["env"], descriptors))


@contextlib.contextmanager
def warm_workers() -> Iterator[None]:
    """Has supervisors start their workers warm, where the system is able to."""
    with mock.patch.object(supervisor, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen})):
        yield


def serve(connection: socket.socket) -> None:
    """Forks a worker for each job that comes, and returns in the worker, ready to begin."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        if not message:
            sys.exit()
        between = os.fork()
        if between == 0:
            if worker := os.fork():
                connection.send(str(worker).encode())
                os._exit(0)
            become(json.loads(message), descriptors)
            connection.close()
            return
        os.waitpid(between, 0)
        connection.send(b"ended")
        for each in descriptors:
            os.close(each)


def become(job: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Makes this process the worker of a job, but for running its module."""
    os.setsid()
    for number, each in enumerate(descriptors[:3]):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv[:] = job["words"]


if __name__ == "__main__":
    from mlxzo.core.blas import load_fast_blas

    load_fast_blas()
    for module in WARM:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))
    # Else `runpy` would warn that it runs a module which is imported already.
    sys.modules.pop(sys.argv[0], None)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
