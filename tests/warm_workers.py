"""Workers and commands that start at once, on Linux: forked from a process that has imported what they import.

The imports, transformers above all, take most of the time that a worker takes to start, and the tests start many.
A forked worker has an environment, a session, pipes and an exit code of its own, as any other. So has a command that
`warm_python` starts, in place of the interpreter; its own workers are warm as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from mlxzo.core.child_process import worker_environment
from mlxzo.runtime import supervisor

# The last four are imported in the course of a run.
WARM = (
    "mlx_lm.models.llama",
    "mlxzo.engine.trainer",
    "mlxzo.runtime.worker",
    "mlxzo.engine.methods.backprop",
    "mlxzo.engine.methods.rsgn",
    "mlxzo.runtime.environment",
    "transformers.models.llama.configuration_llama",
)
WORKERS = ("mlxzo.runtime.worker", "tests.eager_worker")
WORKER_NAME = "mlxzo-worker"
"""The name of a forked worker in the table of processes."""
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_SOCKET = "MLXZO_WARM_SOCKET"
"""Variable with the address of the server that commands are forked from."""
# Read once, by libraries that the server has imported: a worker for which they differ is started cold.
_READ_AT_IMPORT = ("HF_", "MLX_DISABLE_COMPILE", "MLX_ENABLE_TF32", "OPENBLAS_", "PYTHON")


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
    """The process that forks workers; it ends with this one.

    Args:
        environment: that it has imported in.
        process: to be waited for, if it is a child that this process started.
    """

    def __init__(
        self,
        connection: socket.socket,
        environment: Mapping[str, str],
        process: subprocess.Popen[bytes] | None = None,
    ):
        self._connection = connection
        self._process = process
        self._environment = _read_at_import(environment)
        self._lock = threading.Lock()

    @staticmethod
    def start(environment: Mapping[str, str]) -> Server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_workers", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        return Server(ours, environment, process)

    def end(self) -> None:
        self._connection.close()
        if self._process is not None:
            self._process.wait()

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


_servers: dict[int, Server] = {}
"""The server of each process, by its id."""


def _server() -> Server:
    if os.getpid() not in _servers:
        _servers[os.getpid()] = Server.start(worker_environment())
    return _servers[os.getpid()]


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | ForkedWorker:
    """Starts a process as `subprocess.Popen` does, and a worker from the server.

    Of the options a worker takes stdout (a descriptor), stderr (a file), env and pass_fds; it has no stdin.
    """
    if list(command[:3]) != [sys.executable, "-P", "-m"] or command[3] not in WORKERS or sys.platform != "linux":
        return subprocess.Popen(command, **options)
    server = _server()
    if not server.suits(options["env"]):
        return subprocess.Popen(command, **options)
    with Path(os.devnull).open("rb") as nothing:
        descriptors = (nothing.fileno(), options["stdout"], options["stderr"].fileno(), *options.get("pass_fds", ()))
        return ForkedWorker(server.fork(command[3:], options["env"], descriptors))


def _subprocess() -> SimpleNamespace:
    return SimpleNamespace(**{**vars(subprocess), "Popen": popen})


@contextlib.contextmanager
def warm_workers() -> Iterator[None]:
    """Has supervisors start their workers warm, where the system is able to."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, mock.patch.dict(os.environ):
        os.environ[_SOCKET] = f"{folder}/socket"
        with mock.patch.object(supervisor, "subprocess", _subprocess()):
            yield
        if server := _servers.pop(os.getpid(), None):
            server.end()


def warm_python() -> str:
    """The path of a program that runs `-m mlxzo ...` as the interpreter does, in a forked process."""
    if sys.platform != "linux":
        return sys.executable
    address = Path(os.environ[_SOCKET])
    program = address.with_name("python")
    if not program.exists():
        _server()
        limit = time.monotonic() + 60
        while not address.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        client = Path(__file__).with_name("warm_client.py")
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(client))} "$@"\n')
        program.chmod(0o700)
    return str(program)


def serve(connection: socket.socket, listener: socket.socket | None = None) -> None:
    """Forks a process for each job that comes, and returns in it, ready to begin.

    Args:
        connection: to the process whose children the workers become.
        listener: for the clients that want commands.
    """
    sources = [connection, *filter(None, [listener])]
    while True:
        ready, _, _ = select.select(sources, [], [], 1.0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if listener in ready:
            client, _ = listener.accept()
            if os.fork() == 0:
                connection.close()
                listener.close()
                keep(client)
                return
            client.close()
        if connection not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        if not message:
            sys.exit()
        between = os.fork()
        if between == 0:
            if worker := os.fork():
                connection.send(str(worker).encode())
                os._exit(0)
            become(json.loads(message), descriptors)
            ctypes.CDLL(None).prctl(_PR_SET_NAME, WORKER_NAME.encode(), 0, 0, 0)
            for source in sources:
                source.close()
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


def keep(client: socket.socket) -> None:
    """Forks the process of a command, returns in it, and beside it passes on signals and at last its exit code."""
    message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 16)
    command = os.fork()
    if command == 0:
        client.close()
        before = _read_at_import(os.environ)
        become(json.loads(message), descriptors)
        # Those of before know whether they can seek.
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), line_buffering=number == 2, errors=errors)
            for number, errors in ((1, "strict"), (2, "backslashreplace"))
        )
        if before not in (_read_at_import(os.environ), _read_at_import(worker_environment())):
            os.execv(sys.executable, [sys.executable, "-m", *sys.argv])
        nest()
        return
    for each in descriptors:
        os.close(each)
    ended = os.pidfd_open(command)
    while True:
        ready, _, _ = select.select([client, ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            with contextlib.suppress(OSError):
                client.send(str(code).encode())
            os._exit(0)
        # A client that is gone was killed.
        os.kill(command, int(client.recv(16) or signal.SIGKILL))


def nest() -> None:
    """Gives this process a server of its own, forked from it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.close(nothing)
        serve(theirs)
        return
    theirs.close()
    _servers[os.getpid()] = Server(ours, worker_environment())
    supervisor.subprocess = _subprocess()


if __name__ == "__main__":
    from mlxzo.core.mlx_startup import prepare_mlx
    from mlxzo.models.registry import load_registry

    prepare_mlx()
    for module in WARM:
        importlib.import_module(module)
    load_registry()
    # Else each collection in a forked process would copy the pages of all that is imported.
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(os.environ[_SOCKET])
    listening.listen()
    serve(socket.socket(fileno=int(sys.argv[1])), listening)
    # Else `runpy` would warn that it runs a module which is imported already.
    sys.modules.pop(sys.argv[0], None)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
