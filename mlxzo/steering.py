"""What a run is asked to do while it runs: by signals, by commands from other processes, and by its memory cap.

Requests come at any moment and are kept as flags; the run looks at them where it can act on them.
"""

from __future__ import annotations

import signal
import time

from . import events
from .control import Inbox
from .errors import Interrupted
from .memory.watch import Watch
from .runs import BEST_STATE, RunDirectory

_PAUSED_POLL_SECONDS = 0.1


class Steering:
    """The requests to one run.

    Attributes:
        paused_seconds: how long the run was paused, in all.
    """

    def __init__(self, run: RunDirectory, emit: events.Emit, watch: Watch):
        self.paused_seconds = 0.0
        self._run, self._emit, self._watch = run, emit, watch
        self._inbox = Inbox(run.commands_path)
        self._stopped = self._paused = False
        self._asked: set[str] = set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check_memory(self) -> None:
        """Ends a run that is over its memory cap; cheap enough to be called between layers.

        Raises:
            DoesNotFit: it is.
        """
        if self._watch.over:
            raise self._watch.exceeded(self._run.kept())

    def listen(self) -> None:
        """Reads the commands that came, and ends a run that has to end.

        Raises:
            DoesNotFit: it is over its memory cap. Interrupted: the user stopped it.
        """
        for command in self._inbox.take():
            if command == "stop":
                self._stopped = True
            elif command in ("pause", "continue"):
                self._paused = command == "pause"
            else:
                self._asked.add(command)
        self.check_memory()
        if self._stopped:
            raise self._interrupted()

    def takes(self, command: str) -> bool:
        """Whether `evaluate` or `shrink` was asked for since this last said so.

        A footprint near the cap asks for `shrink`.
        """
        if command == "shrink" and self._watch.near:
            self._asked.add(command)
            self._watch.near = False
        asked = command in self._asked
        self._asked.discard(command)
        return asked

    def wait_while_paused(self, step: int) -> None:
        """Listens; where the run is paused, waits until it is not. `step` steps are done."""
        self.listen()
        if not self._paused:
            return
        began = time.monotonic()
        self._emit(events.Paused(step))
        try:
            while self._paused:
                time.sleep(_PAUSED_POLL_SECONDS)
                self.listen()
        finally:
            seconds = time.monotonic() - began
            self.paused_seconds += seconds
        self._emit(events.Continued(step, seconds))

    def _handle(self, number: int, frame: object) -> None:
        self._stopped = True

    def _interrupted(self) -> Interrupted:
        if not (self._run.path / BEST_STATE).exists():
            return Interrupted("the run was stopped before it began to train", "start it again")
        return Interrupted(
            "the run was stopped; its best state so far is saved",
            f"`mlxzo generate --run {self._run.path} PROMPT` tries it. It cannot be continued yet: `mlxzo train "
            f"--config {self._run.path}/config.yaml` starts it anew",
        )
