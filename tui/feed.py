"""Sources of a screen's events: a run's events.jsonl as it grows, or a recording played back.

The files in the run directory are the one source, whoever started the run. A run started here also has a supervisor in
its own thread; of the events that it relays only progress and memory are used, which the file holds in part or not at
all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import MlxzoError
from mlxzo.core.files import open_regular
from mlxzo.core.run_directory import RunDirectory
from mlxzo.core.run_history import RunHistory
from mlxzo.runtime.control import Inbox
from mlxzo.runtime.supervisor import Supervisor

from .log import EventLog

# For a run whose worker was not started here: its exit code is unknown.
DIED = "the worker process ended without a message, most often because memory ran out"
_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 1.0


class Tail:
    """The lines appended to a file since the last `read`; an incomplete line waits for its end."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0
        self._partial = b""

    def read(self) -> list[tuple[events.Event, float]]:
        """Returns the new events with their times; none while the file is missing."""
        try:
            with open_regular(self._path) as file:
                file.seek(self._offset)
                block = file.read()
        except OSError:
            return []
        self._offset += len(block)
        *lines, self._partial = (self._partial + block).split(b"\n")
        return list(events.read(line.decode("utf-8", errors="replace") for line in lines))


@dataclass(frozen=True)
class Relayed:
    """A progress or memory event, its time, and the last event before it that is in the file; None before the first."""

    event: events.Event
    time: float
    after: events.Event | None


class Supervision:
    """A worker started by this process and supervised in a thread until it ends."""

    def __init__(self, run: RunDirectory, *, resume: bool = False, _command: Sequence[str] | None = None):
        self._supervisor = Supervisor(run, resume=resume, _command=_command)
        self._thread = threading.Thread(target=self._supervise, name=f"supervisor of {run.id}", daemon=True)
        self._relayed: deque[Relayed] = deque(maxlen=1000)

    def start(self) -> None:
        """Starts the worker.

        Raises:
            ConfigError: the run has a worker already.
        """
        self._supervisor.start()
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        return self._supervisor.pid

    def stop(self) -> None:
        """Asks the worker to end; every further call is more forceful (see `Supervisor.stop`)."""
        self._supervisor.stop()

    def take(self) -> list[Relayed]:
        """Returns the relayed progress and memory events since the last call."""
        return [self._relayed.popleft() for _ in range(len(self._relayed))]

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _supervise(self) -> None:
        after = None
        while self._supervisor.running:
            for event in self._supervisor.poll(_POLL_SECONDS):
                if isinstance(event, events.Progress | events.Memory):
                    self._relayed.append(Relayed(event, time.time(), after))
                else:
                    after = event


class _Feed:
    """The history and the log of one run, made from the same events."""

    def __init__(self) -> None:
        self.history, self.log = RunHistory(), EventLog()

    def _add(self, event: events.Event, moment: float) -> None:
        self.history.add(event, moment)
        self.log.add(event, moment, self.history.elapsed)


class RunFeed(_Feed):
    """One run, live or past, read from its directory. `poll` brings `history` up to date."""

    def __init__(self, run: RunDirectory):
        super().__init__()
        self.run, self.title = run, run.id
        self.label = ""
        """Its name in the race that it was started for."""
        self.supervision: Supervision | None = None
        self._tail, self._inbox = Tail(run.events_path), Inbox(run.commands_path)
        self._last: events.Event | None = None
        self._stop_requested = False
        # None until `pause` or `continue` was sent.
        self._pause_requested: bool | None = None
        self._lock = threading.Lock()
        self.running = False
        """Whether it has a worker, whoever started it, as of the last `poll`."""
        self._checked = -_ALIVE_SECONDS

    @property
    def config(self) -> RunConfig | None:
        """The options of the run; None while they cannot be read."""
        try:
            return self.run.config
        except MlxzoError:
            return None

    @property
    def died(self) -> bool:
        """True if its worker ended without a message."""
        return not self.running and self.history.outcome is None and self.history.began is not None

    @property
    def resumable(self) -> bool:
        """True if it has no worker and did not finish."""
        return not self.running and not isinstance(self.history.outcome, events.Finished)

    @property
    def request(self) -> str:
        """The command `stop`, `pause` or `continue` that was sent and has not taken effect, whoever sent it; or ''."""
        if not self.running or self.history.outcome is not None:
            return ""
        if self._stop_requested:
            return "stop"
        if self._pause_requested in (None, self.history.paused):
            return ""
        return "pause" if self._pause_requested else "continue"

    def poll(self) -> None:
        """Adds new events to the history. May be called from any thread."""
        with self._lock:
            now = time.monotonic()
            # Before the file is read, so that the last events of a dead worker are not missed.
            if now - self._checked >= _ALIVE_SECONDS:
                self.running, self._checked = self.run.worker_is_alive(), now
            relayed = [] if self.supervision is None else self.supervision.take()
            for event, moment in self._tail.read():
                if self.supervision is not None and isinstance(event, events.Memory):
                    continue
                self._add(event, moment)
                if not isinstance(event, events.Progress | events.Memory):
                    self._last = event
                ended = isinstance(event, events.Finished | events.Failed)
                if ended:
                    self.running, self._checked = False, now
                if ended or (isinstance(event, events.Phase) and event.phase in ("fetch", "load")):
                    # Requests to an earlier worker.
                    self._stop_requested, self._pause_requested = False, None
            for each in relayed if self.history.outcome is None else []:
                # Progress of what has ended meanwhile would stand until the next event.
                if isinstance(each.event, events.Memory) or each.after == self._last:
                    self._add(each.event, each.time)
            for command in self._inbox.take():
                self._stop_requested |= command == "stop"
                if command in ("pause", "continue"):
                    self._pause_requested = command == "pause"

    def start(self, *, resume: bool = False, _command: Sequence[str] | None = None) -> None:
        """Starts the run's worker, with `resume` from where the run stopped.

        Raises:
            ConfigError: the run has a worker already.
        """
        supervision = Supervision(self.run, resume=resume, _command=_command)
        supervision.start()
        self.supervision, self.running, self._checked = supervision, True, time.monotonic()


class Replay(_Feed):
    """A recorded stream of events, played `speed` times as fast as it happened, from the first step on: what came
    before, zero-shot included, is there at once."""

    died = False
    supervision = None
    config = None
    request = ""

    def __init__(self, path: Path, *, speed: float = 8.0, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        with path.open(encoding="utf-8") as lines:
            self._events = list(events.read(lines))
        self.title = f"demo: a recorded run, played {speed:g} times as fast"
        self.run: RunDirectory | None = None
        self.running = True
        self.speed = speed
        self._clock = clock
        self.paused = False
        self._next = 0
        self._played = next(moment for event, moment in self._events if isinstance(event, events.Step))
        # Of the last poll: the first one begins to play.
        self._last: float | None = None

    def poll(self) -> None:
        """Plays the events that are due."""
        now = self._clock()
        if not self.paused and self._last is not None:
            self._played += (now - self._last) * self.speed
        self._last = now
        while self._next < len(self._events) and self._events[self._next][1] <= self._played:
            self._add(*self._events[self._next])
            self._next += 1
        self.running = self._next < len(self._events)

    def skip(self) -> None:
        """Plays the rest at once."""
        self._played = float("inf")
        self.poll()
