"""What a run is asked to do while it runs: by signals, by commands from other processes, and by its memory cap.

Requests come at any moment and are kept as wishes; the run looks at them where it can act on them. In a run over
several processes the wishes travel with what these exchange, so that all of them follow after the same step.
"""

from __future__ import annotations

import signal
import time

from ..core import events
from ..core.errors import Interrupted, RankLost
from ..core.run_directory import BEST_STATE, RunDirectory
from ..engine.distributed.communicator import Communicator, Request
from ..memory.watch import Watch
from .control import Inbox

_PAUSED_POLL_SECONDS = 0.1


class RunControl:
    """The requests to one run.

    Attributes:
        paused_seconds: how long the run was paused, in all.
    """

    def __init__(self, run: RunDirectory, emit: events.Emit, watch: Watch):
        self.paused_seconds = 0.0
        self._run, self._emit, self._watch = run, emit, watch
        self._inbox = Inbox(run.commands_path)
        self._signals = 0
        self._wished = Request.NOTHING
        self.join(Communicator())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check_memory(self) -> None:
        """Ends a run that is over its memory cap; cheap enough to be called between layers.

        Raises:
            DoesNotFit: it is.
        """
        if self._watch.over:
            raise self._watch.exceeded(self._run.kept())

    def join(self, team: Communicator) -> None:
        """Acts from here on by what this team is asked to do."""
        self._team = team
        team.requests = self._wishes

    def _wishes(self) -> Request:
        """What this process is asked to do: by signals, by the commands that came, and by its memory."""
        if self._signals:
            self._wished |= Request.STOP
        for command in self._inbox.take():
            if command == "continue":
                self._wished &= ~Request.PAUSE
            else:
                self._wished |= Request[command.upper()]
        if self._watch.near:
            self._wished |= Request.SHRINK
            self._watch.near = False
        wished = self._wished
        self._wished &= ~Request.ONCE
        return wished

    def listen(self) -> None:
        """Hears what the run is asked to do, and ends it where it has to end.

        Raises:
            DoesNotFit: it is over its memory cap. Interrupted: the user stopped it.
        """
        self._team.listen()
        self.check_memory()
        if self._team.is_requested(Request.STOP):
            raise self._interrupted()

    def listen_while_waiting(self) -> None:
        """The same while this process waits for other ranks: once they are in step, it must not stop alone, unless it
        is asked a second time.

        Raises:
            RankLost: it was.
        """
        if not self._team.in_step:
            self.listen()
        self.check_memory()
        if self._signals > 1:
            raise RankLost("stopped by force while it waited for another rank", "`mlxzo train --resume` goes on")

    def takes(self, command: str) -> bool:
        """Whether `evaluate` or `shrink` was asked for since this last said so.

        A footprint near the cap asks for `shrink`.
        """
        self._team.listen()
        return self._team.consume(Request[command.upper()])

    def is_over(self, late: bool) -> bool:
        """Whether the time that the run may take is over; `late` says that it is by the clock of this process."""
        if late:
            self._wished |= Request.END
            self._team.listen()
        return self._team.is_requested(Request.END)

    def wait_while_paused(self, step: int) -> None:
        """Listens; where the run is paused, waits until it is not. `step` steps are done."""
        self.listen()
        if not self._team.is_requested(Request.PAUSE):
            return
        began = time.monotonic()
        self._emit(events.Paused(step))
        try:
            while self._team.is_requested(Request.PAUSE):
                time.sleep(_PAUSED_POLL_SECONDS)
                self._team.synchronise()
                self.listen()
        finally:
            seconds = time.monotonic() - began
            self.paused_seconds += seconds
        self._emit(events.Unpaused(step, seconds))

    def _handle(self, number: int, frame: object) -> None:
        self._signals += 1

    def _interrupted(self) -> Interrupted:
        if not (self._run.path / BEST_STATE).exists():
            return Interrupted(
                "the run was stopped before it began to train",
                f"`mlxzo train --resume {self._run.path}` starts it again",
            )
        return Interrupted(
            "the run was stopped; its best state so far is saved",
            f"`mlxzo train --resume {self._run.path}` goes on where it stopped; `mlxzo generate --run {self._run.path} "
            "PROMPT` tries the best state",
        )
