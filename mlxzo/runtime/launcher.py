"""Starts the ranks of a run on several machines, relays their events, and ends all of them when one ends.

Each rank is a `mlxzo train` process, started with mlx.launch's own class: on this machine or over ssh. It prints its
events to stdout, one per line, and reads `stop` from stdin. The loop of mlx.launch is not used: it exits with 0 even if
ranks fail, and keeps a core busy while it waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import events
from ..core.child_process import pipe, search_path, signal_name
from ..core.errors import EXIT_DONE, ConfigError, Interrupted, MlxzoError, RankLost, RanksError, WorkerDied
from ..core.run_directory import RunDirectory
from .hosts import Hosts

if TYPE_CHECKING:
    from mlx._distributed_utils.launch import RemoteProcess

# Set in the environment of a rank, which then prints events to stdout and reads `stop` from stdin.
RELAY = "MLXZO_RELAY"
STOP = b"stop\n"

# After a rank fails, the time that the others have to report why they end, and then to end.
_REPORT_SECONDS = 2.0
_GRACE_SECONDS = 60.0
_KEPT_BYTES = 4096


@dataclass
class _Rank:
    """One rank's process and its output.

    Attributes:
        partial: the incomplete last line of stdout.
        errors: the last bytes of stderr, and of lines of stdout that are no events.
        open_pipes: stdout and stderr, until they end.
        greeted: the first output of mlx.launch's script has been removed.
    """

    number: int
    host: str
    remote: RemoteProcess
    partial: bytes = b""
    errors: bytes = b""
    open_pipes: int = 2
    greeted: bool = False
    failed: events.Failed | None = None
    finished: bool = False

    @property
    def name(self) -> str:
        return f"rank {self.number} ({self.host})"

    @property
    def code(self) -> int | None:
        return self.remote.process.poll()

    @property
    def ended(self) -> bool:
        return self.code is not None and not self.open_pipes


@dataclass
class Launcher:
    """The ranks of one run.

    Args:
        command: to run on each machine; its environment makes it a rank.
        port: of rank 0 (see `Hosts.addresses`).

    Attributes:
        run: the run directory of rank 0; None until it reports one.
        result: of the Finished event; None until then.
    """

    hosts: Hosts
    command: Sequence[str]
    port: int | None = None
    run: RunDirectory | None = None
    result: dict | None = None
    _ranks: list[_Rank] = field(default_factory=list)
    _pipes: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _stops: int = 0
    _failed_at: float | None = None
    _failed: list[_Rank] = field(default_factory=list)
    _terminated: bool = False

    def start(self) -> None:
        """Starts all ranks.

        Raises:
            ConfigError: MLX has no launcher for them.
        """
        try:
            from mlx._distributed_utils.launch import RemoteProcess
        except ImportError as error:
            raise ConfigError(f"this MLX cannot launch ranks: {error}", "install the MLX that mlxzo asks for") from None
        addresses = [[address] for address in self.hosts.addresses(self.port)]
        files = {"MLX_HOSTFILE": json.dumps(addresses)}
        path = search_path()
        environment = [*([f"PYTHONPATH={path}"] if path else []), *self.hosts.envs, f"{RELAY}=1"]
        # The children inherit this: a Ctrl-C in the terminal reaches all of its processes, but only `stop` ends ranks.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for number, host in enumerate(self.hosts.hosts):
                remote = RemoteProcess(number, host.ssh, None, None, files, environment, list(self.command))
                rank = _Rank(number, host.ssh, remote)
                self._ranks.append(rank)
                for stream in map(pipe, (remote.process.stdout, remote.process.stderr)):
                    os.set_blocking(stream.fileno(), False)
                    self._pipes.register(stream, selectors.EVENT_READ, rank)
        finally:
            signal.signal(signal.SIGINT, before)

    @property
    def running(self) -> bool:
        return any(not rank.ended for rank in self._ranks)

    def poll(self, timeout: float) -> list[events.Event]:
        """Waits up to `timeout` seconds for events of rank 0 and returns them."""
        found: list[events.Event] = []
        for key, _ in self._pipes.select(timeout):
            rank: _Rank = key.data
            block = os.read(key.fd, 1 << 16)
            if not block:
                self._pipes.unregister(key.fileobj)
                rank.open_pipes -= 1
            elif key.fileobj is rank.remote.process.stdout:
                found += self._receive(rank, block)
            else:
                rank.errors = (rank.errors + block)[-_KEPT_BYTES:]
        self._watch()
        return found

    def stop(self) -> None:
        """Asks all ranks to end after their current step; called again, by force. Safe in a signal handler."""
        self._stops += 1
        for rank in self._ranks:
            with contextlib.suppress(OSError, ValueError):
                os.write(pipe(rank.remote.process.stdin).fileno(), STOP)

    def error(self) -> MlxzoError | None:
        """The reason why the run ended; None if it is complete.

        It is that of the rank that failed first, among those that did not merely lose another rank.
        """
        if self.result is not None:
            return None
        reports = [(rank, rank.failed) for rank in self._failed if rank.failed is not None]
        causes = [(rank, failed) for rank, failed in reports if failed.kind not in (RankLost.kind, Interrupted.kind)]
        if self._stops and not causes:
            for _, failed in reports:
                if failed.kind == Interrupted.kind:
                    return Interrupted(failed.message, failed.fix, failed.details)
            return Interrupted("the run was stopped before it could report", "continue with `mlxzo train --resume RUN`")
        silent = [rank for rank in self._failed if rank.failed is None]
        if silent and not causes:
            return _unexpected(silent[0])
        if not reports:
            return RanksError("all ranks ended without a message", "try `mlxzo train` without --hosts")
        rank, failed = (causes or reports)[0]
        # A failure of all ranks is not attributed to one of them.
        own = len(causes) < len(self._ranks) and not failed.message.startswith("rank ")
        return (replace(failed, message=f"{rank.name}: {failed.message}") if own else failed).error()

    def _receive(self, rank: _Rank, block: bytes) -> list[events.Event]:
        """Processes a rank's output on stdout; returns the events of rank 0."""
        if not rank.greeted:
            # The first line is from mlx.launch's script: the file with the process id.
            block = rank.remote.preprocess_output(block.decode(errors="replace"), is_stdout=True).encode()
            rank.greeted = True
        *lines, rank.partial = (rank.partial + block).split(b"\n")
        found = []
        for line in lines:
            text = line.decode(errors="replace")
            received = events.from_json(text)
            if received is None:
                self._note(rank, text)
                continue
            event = received[0]
            if isinstance(event, events.Failed):
                rank.failed = event
            elif isinstance(event, events.Finished):
                rank.finished, self.result = True, event.result
            if rank.number == 0:
                found.append(event)
        return found

    def _note(self, rank: _Rank, text: str) -> None:
        """Processes a line that is no event: rank 0's run directory, or an error message."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            self.run = RunDirectory(Path(json.loads(text)["run"]))
            return
        rank.errors = (rank.errors + text.encode() + b"\n")[-_KEPT_BYTES:]

    def _watch(self) -> None:
        """Ends the other ranks some time after one has failed."""
        now = time.monotonic()
        for rank in self._ranks:
            failed = rank.failed is not None or (rank.ended and rank.code != EXIT_DONE and not rank.finished)
            # In order: ranks that are ended because of a failure come after it.
            if failed and rank not in self._failed:
                self._failed.append(rank)
        if self._failed_at is None:
            if self._failed:
                self._failed_at = now
            return
        left = [rank for rank in self._ranks if rank.code is None]
        if left and not self._terminated and now - self._failed_at > _REPORT_SECONDS:
            self._terminated = True
            for rank in left:
                # In a thread: it waits for the process, and for ssh.
                threading.Thread(target=_terminate, args=(rank,), daemon=True).start()
        if now - self._failed_at > _GRACE_SECONDS:
            for rank in left:
                rank.remote.process.kill()


def _terminate(rank: _Rank) -> None:
    # If the rank has ended meanwhile, or its machine cannot be reached, nothing is left to end.
    with contextlib.suppress(Exception):
        rank.remote.terminate()


def _unexpected(rank: _Rank) -> MlxzoError:
    """The reason for the end of a rank without a report: mostly an unreachable machine, or one without mlxzo."""
    lines = [line.strip() for line in rank.errors.decode(errors="replace").splitlines() if line.strip()]
    if rank.code is not None and rank.code < 0:
        return WorkerDied(
            f"{rank.name} was ended by {signal_name(-rank.code)} from outside",
            "continue with `mlxzo train --resume RUN`",
        )
    reason = f": {lines[-1]}" if lines else ""
    return RanksError(
        f"{rank.name} ended with code {rank.code}{reason}",
        f"see whether `ssh {rank.host} {sys.executable} -m mlxzo --version` works from here",
        lines[-6:-1],
    )
