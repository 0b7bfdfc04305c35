"""Control of a run while it runs: commands that any process sends, and the worker's end that acts on them.

Commands are lines appended to a file in the run directory, so that any process can send them. The worker reads the file
between steps, while it evaluates and while it is paused. Signals and the memory cap add requests of their own. The run
acts on requests between steps; ranks exchange them with their other data, so that all act after the same step. Nothing
here imports MLX.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ..core import events
from ..core.errors import ConfigError, Interrupted, RankLost
from ..core.files import append, open_regular
from ..core.run_directory import BEST_STATE, RunDirectory
from ..engine.distributed.communicator import Communicator, Request
from ..memory.watch import Watch

_PAUSED_POLL_SECONDS = 0.1
# The longest wait for a killed worker to end: it may have to be woken from the disk.
_DEATH_SECONDS = 10.0

COMMANDS = {
    "pause": "pause after the current step, until `continue` or `stop`",
    "continue": "resume a paused run",
    "stop": "stop after the current step; the best state so far is kept",
    "evaluate": "evaluate the weights on the validation split after the current step",
    "shrink": "use less memory: smaller micro-batches, with the same losses up to float32 rounding",
}


def send(run: RunDirectory, command: str) -> None:
    """Sends a command to the run's worker; returns at once. The run's events show when it takes effect.

    Raises:
        ConfigError: there is no such command, the run is not running, or its directory cannot be written.
    """
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command!r} for a run", f"use one of {', '.join(COMMANDS)}")
    if not run.worker_is_alive():
        raise ConfigError(
            f"the run {run.id} is not running, so it cannot {command}",
            "`mlxzo runs ls` lists the runs and their status",
        )
    # One write, so that lines of several senders do not mix. The newline before it ends a line that a sender may have
    # left incomplete.
    line = "\n" + json.dumps({"command": command, "time": time.time()}) + "\n"
    try:
        descriptor = os.open(run.commands_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            append(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{run.commands_path} cannot be written: {error.strerror}", "check the folder") from None


def kill(run: RunDirectory) -> None:
    """Ends the run's worker by force, whoever started it, and waits for its end: the steps since the last saved state
    are lost.

    Raises:
        ConfigError: the run is not running, or its process cannot be ended.
    """
    if not run.worker_is_alive():
        raise ConfigError(f"the run {run.id} is not running, so it cannot be ended by force")
    error = Interrupted(
        "the run was stopped by force, before it could save its last steps",
        f"`mlxzo train --resume {shlex.quote(str(run.path))}` continues it",
    )
    try:
        # A worker leads its session, so its children end with it.
        worker = int(run.lock_path.read_text())
        os.killpg(worker, signal.SIGSTOP)
        # Before its end, so that its supervisor, if it has one, does not look for another reason.
        run.add_event(events.Failed(**error.to_dict()))
        os.killpg(worker, signal.SIGKILL)
    except (OSError, ValueError) as problem:
        reason = (isinstance(problem, OSError) and problem.strerror) or "its process is not known"
        raise ConfigError(f"the run {run.id} cannot be ended by force: {reason}", "end its process by hand") from None
    limit = time.monotonic() + _DEATH_SECONDS
    while run.worker_is_alive() and time.monotonic() < limit:
        time.sleep(_PAUSED_POLL_SECONDS)


def forget(run: RunDirectory) -> None:
    """Drops the commands to an earlier worker of the run; to be called before a new one starts."""
    run.commands_path.unlink(missing_ok=True)


class Inbox:
    """The commands of a file, each returned once, in the order in which they were sent."""

    def __init__(self, path: Path):
        self._path = path
        self._read_bytes = 0

    def take(self) -> list[str]:
        """Commands since the last call. Costs one look at the file's size where there are none.

        Skips unknown commands, torn lines and anything else that is no command.
        """
        try:
            size = self._path.stat().st_size
            if size == self._read_bytes:
                return []
            if size < self._read_bytes:
                # The file was emptied.
                self._read_bytes = 0
            with open_regular(self._path) as file:
                file.seek(self._read_bytes)
                block = file.read()
        except FileNotFoundError:
            # The next worker's file is a new one.
            self._read_bytes = 0
            return []
        except OSError:
            return []
        # A line without its end is still being written.
        whole = block[: block.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [command for line in whole.splitlines() if (command := _command(line)) is not None]


class RunControl:
    """The requests to one run, in its worker.

    Attributes:
        paused_seconds: total time that the run was paused.
    """

    def __init__(self, run: RunDirectory, emit: events.Emit, watch: Watch):
        self.paused_seconds = 0.0
        self._run, self._emit, self._watch = run, emit, watch
        self._inbox = Inbox(run.commands_path)
        self._signals = 0
        self._requested = Request.NOTHING
        self.join(Communicator())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check_memory(self) -> None:
        """Ends a run that is over its memory cap; cheap enough to be called between layers.

        Raises:
            DoesNotFit: the run is over its cap.
        """
        if self._watch.over:
            raise self._watch.exceeded(self._run.kept())

    def join(self, team: Communicator) -> None:
        """Acts from here on on the requests to all ranks of a communicator."""
        self._team = team
        team.requests = self._own_requests

    def _own_requests(self) -> Request:
        """Requests to this process: by signals, by commands, and by its memory; each of `Request.ONCE` once."""
        if self._signals:
            self._requested |= Request.STOP
        for command in self._inbox.take():
            if command == "continue":
                self._requested &= ~Request.PAUSE
            else:
                self._requested |= Request[command.upper()]
        if self._watch.near:
            self._requested |= Request.SHRINK
            self._watch.near = False
        requested = self._requested
        self._requested &= ~Request.ONCE
        return requested

    def listen(self) -> None:
        """Receives the requests to the run, and ends it where it has to end.

        Raises:
            DoesNotFit: it is over its memory cap. Interrupted: the user stopped it.
        """
        self._team.listen()
        self.check_memory()
        if self._team.is_requested(Request.STOP):
            raise self._interrupted()

    def listen_while_waiting(self) -> None:
        """Receives requests while this process waits for other ranks: once the ranks are in step, it must not stop
        alone, except on a second signal.

        Raises:
            RankLost: there was one. DoesNotFit, Interrupted: see `listen`.
        """
        if not self._team.in_step:
            self.listen()
        self.check_memory()
        if self._signals > 1:
            raise RankLost("stopped by force while it waited for another rank", "`mlxzo train --resume` continues")

    def consume(self, request: Request) -> bool:
        """Returns whether the run has this request, one of `Request.ONCE`, which is then done with.

        A footprint near the cap requests SHRINK.
        """
        self._team.listen()
        return self._team.consume(request)

    def is_over(self, late: bool) -> bool:
        """Returns whether the run's time limit is reached by the clock of any rank; `late`: by that of this process."""
        if late:
            self._requested |= Request.END
            self._team.listen()
        return self._team.is_requested(Request.END)

    def wait_while_paused(self, step: int, serve: Callable[[], bool]) -> None:
        """Listens, and waits while the run is paused; `step` steps are done.

        Args:
            serve: carries out the other requests, and returns whether it evaluated.
        """
        self.listen()
        if not self._team.is_requested(Request.PAUSE):
            return
        began, busy = time.monotonic(), 0.0
        self._emit(events.Paused(step))
        try:
            while self._team.is_requested(Request.PAUSE):
                time.sleep(_PAUSED_POLL_SECONDS)
                self._team.synchronise()
                self.listen()
                served = time.monotonic()
                if serve():
                    busy += time.monotonic() - served
                    # The phases of the evaluation have told otherwise.
                    self._emit(events.Paused(step))
        finally:
            seconds = time.monotonic() - began - busy
            self.paused_seconds += seconds
        self._emit(events.Unpaused(step, seconds))

    def _handle(self, number: int, frame: object) -> None:
        self._signals += 1

    def _interrupted(self) -> Interrupted:
        path = shlex.quote(str(self._run.path))
        if not (self._run.path / BEST_STATE).exists():
            return Interrupted(
                "the run was stopped before it began to train", f"`mlxzo train --resume {path}` starts it again"
            )
        return Interrupted(
            "the run was stopped; its best state so far is saved",
            f"`mlxzo train --resume {path}` continues where it stopped; `mlxzo generate --run {path} PROMPT` tries the "
            "best state",
        )


def _command(line: bytes) -> str | None:
    try:
        command = json.loads(line)["command"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return command if isinstance(command, str) and command in COMMANDS else None
