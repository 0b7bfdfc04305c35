"""Training in the foreground: events on the terminal, Ctrl-C passed on, the result at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..core import events
from ..core.run_directory import RunDirectory
from ..core.run_history import RunHistory
from ..runtime.supervisor import Supervisor
from .console import RunView, key_values, output, summary_rows
from .printing import print_json
from .streams import silence, terminals

_POLL_SECONDS = 0.25


class Stoppable(Protocol):
    """Work that Ctrl-C ends: a worker, the ranks of a run, or a queue of runs."""

    def stop(self) -> None: ...


class Running(Stoppable, Protocol):
    """One run in other processes: a supervisor's worker, or the ranks of a launcher."""

    @property
    def running(self) -> bool: ...

    def start(self) -> None: ...

    def poll(self, timeout: float) -> list[events.Event]: ...


def train(supervisor: Supervisor, *, as_json: bool) -> None:
    """Trains a run to its end and prints its table to stdout, or its result as JSON.

    Raises:
        MlxzoError: the run did not finish; title, fix and exit code are the worker's own.
    """
    run = supervisor.run
    history = watch(supervisor, f"run directory {run.path}")
    outcome = supervisor.outcome
    assert outcome is not None
    if isinstance(outcome, events.Failed):
        raise dataclasses.replace(outcome, details=[*outcome.details, f"run directory: {run.path}"]).error()
    show_result(outcome.result, run, history, as_json=as_json)


def watch(running: Running, note: str = "") -> RunHistory:
    """Starts `running` and shows its events until it has ended; returns the history of those events."""
    history = RunHistory()
    # The handlers are in place before there is a worker that a Ctrl-C could leave behind.
    with RunView() as view, signals_to(running, view) as show_stop:
        if note:
            view.show(events.Note(note))
        running.start()
        while running.running:
            for event in running.poll(_POLL_SECONDS):
                history.add(event)
                view.show(event)
            show_stop()
    return history


def show_result(result: dict[str, Any], run: RunDirectory, history: RunHistory, *, as_json: bool) -> None:
    """Prints the table of a finished run to stdout, or its result as JSON there and the table to stderr.

    Args:
        history: of the events that were seen; those before the run was resumed are in its directory alone, if that is
            on this machine.
    """
    if run.events_path.exists():
        history = RunHistory.read(run.events())
    if as_json:
        print_json({**result, "run": str(run.path)})
    console = RunView().console if as_json else output()
    console.print(key_values([*summary_rows(history), ("run", str(run.path))]))


@contextlib.contextmanager
def signals_to(running: Stoppable, view: RunView) -> Iterator[Callable[[], None]]:
    """Turns Ctrl-C and SIGTERM into `running.stop()`. If the terminal hangs up, the work goes on without it.

    Yields a function that notes new signals in `view`, to be called regularly: a signal handler must not write to a
    terminal that may be in the middle of a line.
    """
    signals = shown = 0

    def handle(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        running.stop()

    def show_stop() -> None:
        nonlocal shown
        if signals > shown:
            shown = signals
            view.show(events.Note(_stopping(shown)))

    shown_on = terminals()
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    # Ignored where the command was started by nohup.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: silence(shown_on))
    try:
        yield show_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopping(times: int) -> str:
    if times == 1:
        return "stopping after this step and saving; press Ctrl-C again to stop by force"
    return "stopping by force; steps after the last saved state are lost"
