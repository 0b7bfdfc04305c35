"""Runs training in the foreground: the worker's events on the terminal, Ctrl-C passed on, the result at the end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from .. import events
from ..console import ResultTable, RunView, output
from ..errors import MlxzoError
from ..runs import RunDirectory
from ..supervisor import Supervisor
from .options import print_json


def train(run: RunDirectory, *, as_json: bool, resume: bool = False) -> None:
    """Trains a run to its end and prints its table to stdout, or its result as JSON.

    Raises:
        MlxzoError: the run did not finish; title, fix and exit code are the worker's own.
    """
    supervisor = Supervisor(run, resume=resume)
    table = ResultTable()
    # The handlers are in place before there is a worker that a Ctrl-C could leave behind.
    with RunView() as view, _signals_to(supervisor) as interrupts:
        view.show(events.Note(f"run directory {run.path}"))
        supervisor.start()
        announced = 0
        while supervisor.running:
            for event in supervisor.poll(0.25):
                table.add(event)
                view.show(event)
            if len(interrupts) > announced:
                announced = len(interrupts)
                view.show(events.Note(_stopping(announced)))
    outcome = supervisor.outcome
    if isinstance(outcome, events.Failed):
        raise _failure(outcome, run)
    if as_json:
        print_json({**outcome.result, "run": str(run.path)})
    table.show(view.console if as_json else output(), str(run.path))


@contextlib.contextmanager
def _signals_to(supervisor: Supervisor) -> Iterator[list[int]]:
    """Turns Ctrl-C and SIGTERM into `supervisor.stop()`; yields the list of those that came."""
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        supervisor.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopping(times: int) -> str:
    if times == 1:
        return "stopping after this step and saving; press Ctrl-C again to stop by force"
    return "stopping by force; what came after the last saved state is lost"


def _failure(failed: events.Failed, run: RunDirectory) -> MlxzoError:
    """The worker's error as an exception of this process."""
    error = MlxzoError(failed.message, failed.fix, [*failed.details, f"run directory: {run.path}"])
    error.title, error.exit_code = failed.title, failed.exit_code
    return error
