"""A queue of runs in the foreground: events and position on the terminal, Ctrl-C passed on; tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core.config import RunConfig
from ..core.events import Emit, Event, Note, Step
from ..core.run_directory import RunDirectory
from ..experiments.queue import Ended, RunQueue
from .console import RunsView, RunView, listing, output
from .foreground import signals_to


def watch(
    configs: Iterable[RunConfig],
    begin: Callable[[], Iterable[str]],
    record: Callable[[Ended], None],
    *,
    prepare: Callable[[Emit, Callable[[], bool]], None] = lambda emit, stopping: None,
    jobs: int = 1,
    **more: Any,
) -> bool:
    """Executes runs and shows their events; True if it was stopped before all had ended.

    Args:
        begin: called once the names of existing runs are checked; returns notes to show.
        record: called with each run that has ended.
        prepare: called before the first run begins, with a function that shows events and one that tells whether it is
            to be stopped.
        jobs, more: as RunQueue takes them.

    Raises:
        MlxzoError: existing runs of these names have other options, or a run directory cannot be made.
    """
    with RunView() if jobs == 1 else RunsView() as view:

        def emit(run: RunDirectory, event: Event) -> None:
            if isinstance(event, Step):
                view.overall = queue.position()
            if isinstance(view, RunsView):
                view.show(event, run.id)
            else:
                view.show(event)

        queue = RunQueue(configs, emit, lambda: show_stop(), jobs=jobs, **more)
        queue.check()
        with signals_to(queue, view) as show_stop:

            def show(event: Event) -> None:
                view.show(event)
                show_stop()

            prepare(show, lambda: queue.stopping)
            for text in begin():
                view.show(Note(text))
            for ended in queue.run():
                view.overall = ""
                if ended.failed:
                    view.show(Note(f"{ended.run.id}: {ended.failed.message}"))
                record(ended)
    return queue.stopping


def print_table(header: list[str], rows: list[list[str]], right: Sequence[str]) -> None:
    """Prints a table to stdout; the columns in `right` are aligned to the right."""
    output().print(listing(header, rows, right=tuple(right)))


def print_lines(lines: Iterable[str]) -> None:
    """Prints plain lines to stdout."""
    console = output()
    for line in lines:
        console.print(line, soft_wrap=True)
