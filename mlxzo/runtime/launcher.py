"""Starts the ranks of a run on several machines, relays what they tell, and ends all of them where one ends.

Each rank is `mlxzo train` once more, started by mlx.launch's own machinery: here, or over ssh. It tells its events on
stdout, a line each, and takes `stop` on stdin. mlx.launch itself ends with 0 even where ranks fail, and keeps a core
busy while it waits; so its loop is not used.
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
from ..core.errors import EXIT_DONE, ConfigError, Interrupted, MlxzoError, RankLost, RanksError, WorkerDied
from ..core.run_directory import RunDirectory
from .hosts import Hosts

if TYPE_CHECKING:
    from mlx._distributed_utils.launch import RemoteProcess

# In the environment of a rank: events are told on stdout, and `stop` comes on stdin.
RELAY = "MLXZO_RELAY"
STOP = b"stop\n"

# Once one has failed, the others have so long to say why they end, and then to end.
_LAST_WORD_SECONDS = 2.0
_GRACE_SECONDS = 60.0
_KEPT_BYTES = 4096


@dataclass
class _Rank:
    """One rank's process, and what came from it."""

    number: int
    host: str
    remote: RemoteProcess
    partial: bytes = b""
    complaints: bytes = b""
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
        command: what each machine runs, which becomes a rank by its environment.
        port: that of rank 0 (see `Hosts.addresses`).

    Attributes:
        run: rank 0's run directory, once it has told.
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
        environment = [*self.hosts.envs, f"{RELAY}=1"]
        # A Ctrl-C in the terminal reaches all of its processes: ranks, near and far, end by our word alone.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for number, host in enumerate(self.hosts.hosts):
                remote = RemoteProcess(number, host.ssh, None, None, files, environment, list(self.command))
                rank = _Rank(number, host.ssh, remote)
                self._ranks.append(rank)
                for pipe in (remote.process.stdout, remote.process.stderr):
                    os.set_blocking(pipe.fileno(), False)
                    self._pipes.register(pipe, selectors.EVENT_READ, rank)
        finally:
            signal.signal(signal.SIGINT, before)

    @property
    def running(self) -> bool:
        return any(not rank.ended for rank in self._ranks)

    def poll(self, timeout: float) -> list[events.Event]:
        """Waits up to `timeout` seconds for events of rank 0 and returns those that came."""
        found: list[events.Event] = []
        for key, _ in self._pipes.select(timeout):
            rank: _Rank = key.data
            block = os.read(key.fd, 1 << 16)
            if not block:
                self._pipes.unregister(key.fileobj)
                rank.open_pipes -= 1
            elif key.fileobj is rank.remote.process.stdout:
                found += self._heard(rank, block)
            else:
                rank.complaints = (rank.complaints + block)[-_KEPT_BYTES:]
        self._watch()
        return found

    def stop(self) -> None:
        """Asks all ranks to end after the step in hand; called again, to end by force. Safe in a signal handler."""
        self._stops += 1
        for rank in self._ranks:
            with contextlib.suppress(OSError, ValueError):
                os.write(rank.remote.process.stdin.fileno(), STOP)

    def error(self) -> MlxzoError | None:
        """Why the run ended, once it has; None where it is complete.

        What the ranks say is one story: the one that failed first knows why, and those that lost it say so.
        """
        if self.result is not None:
            return None
        told = [rank for rank in self._failed if rank.failed is not None]
        reasons = [rank for rank in told if rank.failed.kind not in (RankLost.kind, Interrupted.kind)]
        silent = [rank for rank in self._failed if rank.failed is None]
        if self._stops and not reasons:
            said = next((rank.failed for rank in told if rank.failed.kind == Interrupted.kind), None)
            if said is not None:
                return Interrupted(said.message, said.fix, said.details)
            return Interrupted("the run was stopped before it could say more", "`mlxzo train --resume RUN` goes on")
        first = next(iter(reasons or silent or told), None)
        if first is None:
            return RanksError("all ranks ended without a word", "`mlxzo train` without --hosts may say why")
        if first.failed is None:
            return _unexpected(first)
        failed = first.failed
        # What all of them say is nobody's own.
        own = len(reasons) < len(self._ranks) and not failed.message.startswith("rank ")
        return (replace(failed, message=f"{first.name}: {failed.message}") if own else failed).error()

    def _heard(self, rank: _Rank, block: bytes) -> list[events.Event]:
        """Takes in what a rank wrote to stdout; returns events of rank 0."""
        if not rank.greeted:
            # The launcher's own first line: where the process's id is kept.
            block = rank.remote.preprocess_output(block.decode(errors="replace"), is_stdout=True).encode()
            rank.greeted = True
        *lines, rank.partial = (rank.partial + block).split(b"\n")
        found = []
        for line in lines:
            text = line.decode(errors="replace")
            heard = events.from_json(text)
            if heard is None:
                self._note(rank, text)
                continue
            event = heard[0]
            if isinstance(event, events.Failed):
                rank.failed = event
            elif isinstance(event, events.Finished):
                rank.finished, self.result = True, event.result
            if rank.number == 0:
                found.append(event)
        return found

    def _note(self, rank: _Rank, text: str) -> None:
        """Takes in a line that is no event: rank 0's run directory, or a complaint."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            self.run = RunDirectory(Path(json.loads(text)["run"]))
            return
        rank.complaints = (rank.complaints + text.encode() + b"\n")[-_KEPT_BYTES:]

    def _watch(self) -> None:
        """Ends the other ranks some time after one has failed."""
        now = time.monotonic()
        for rank in self._ranks:
            failed = rank.failed is not None or (rank.ended and rank.code != EXIT_DONE and not rank.finished)
            # Those that are ended for it come after it.
            if failed and rank not in self._failed:
                self._failed.append(rank)
        if self._failed_at is None:
            if self._failed:
                self._failed_at = now
            return
        left = [rank for rank in self._ranks if rank.code is None]
        if left and not self._terminated and now - self._failed_at > _LAST_WORD_SECONDS:
            self._terminated = True
            for rank in left:
                # It waits for the process, and for ssh.
                threading.Thread(target=_terminate, args=(rank,), daemon=True).start()
        if now - self._failed_at > _GRACE_SECONDS:
            for rank in left:
                rank.remote.process.kill()


def _terminate(rank: _Rank) -> None:
    # It has ended meanwhile, or its machine is gone: there is nothing more to end.
    with contextlib.suppress(Exception):
        rank.remote.terminate()


def _unexpected(rank: _Rank) -> MlxzoError:
    """Why a rank ended that said nothing of it: most often its machine could not be reached, or has no mlxzo."""
    lines = [line.strip() for line in rank.complaints.decode(errors="replace").splitlines() if line.strip()]
    if rank.code < 0:
        name = signal.Signals(-rank.code).name
        return WorkerDied(f"{rank.name} was ended by {name} from outside", "`mlxzo train --resume RUN` goes on")
    said = f": {lines[-1]}" if lines else ""
    return RanksError(
        f"{rank.name} ended with code {rank.code}{said}",
        f"see whether `ssh {rank.host} {sys.executable} -m mlxzo --version` works from here",
        lines[-6:-1],
    )
