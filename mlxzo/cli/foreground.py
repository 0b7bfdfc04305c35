"""Runs training in the foreground: the worker's events on the terminal, Ctrl-C passed on, the result at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Protocol

from ..core import events
from ..core.errors import MlxzoError
from ..core.run_directory import RunDirectory
from ..runtime.supervisor import Supervisor
from .console import ResultTable, RunView, output
from .options import print_json


def train(run: RunDirectory, *, as_json: bool, resume: bool = False, allow_code: bool = False) -> None:
    """Trains a run to its end and prints its table to stdout, or its result as JSON.

    Args:
        allow_code: the user has said that what the configuration names may be run.

    Raises:
        MlxzoError: the run did not finish; title, fix and exit code are the worker's own.
    """
    supervisor = Supervisor(run, resume=resume, allow_code=allow_code)
    table = ResultTable()
    # The handlers are in place before there is a worker that a Ctrl-C could leave behind.
    with RunView() as view, signals_to(supervisor, view) as tell:
        view.show(events.Note(f"run directory {run.path}"))
        supervisor.start()
        while supervisor.running:
            for event in supervisor.poll(0.25):
                table.add(event)
                view.show(event)
            tell()
    outcome = supervisor.outcome
    if isinstance(outcome, events.Failed):
        raise _failure(outcome, run)
    if as_json:
        print_json({**outcome.result, "run": str(run.path)})
    table.show(view.console if as_json else output(), str(run.path))


class Stoppable(Protocol):
    """What Ctrl-C ends: a supervisor, or a series of runs."""

    def stop(self) -> None: ...


@contextlib.contextmanager
def signals_to(running: Stoppable, view: RunView) -> Iterator[Callable[[], None]]:
    """Turns Ctrl-C and SIGTERM into `running.stop()`; yields what says so in `view`, to be called now and then.

    A signal handler must not write to a terminal that may be in the middle of a line.
    """
    came: list[int] = []
    told = 0

    def handle(number: int, frame: object) -> None:
        came.append(number)
        running.stop()

    def tell() -> None:
        nonlocal told
        if len(came) > told:
            told = len(came)
            view.show(events.Note(_stopping(told)))

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield tell
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopping(times: int) -> str:
    if times == 1:
        return "stopping after this step and saving; press Ctrl-C again to stop by force"
    return "stopping by force; what came after the last saved state is lost"


def _failure(failed: events.Failed, run: RunDirectory) -> MlxzoError:
    """The worker's error as an exception of this process."""
    return dataclasses.replace(failed, details=[*failed.details, f"run directory: {run.path}"]).error()
