"""Rows of the list of runs, read from disk with little work."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import MlxzoError
from mlxzo.core.files import user_path
from mlxzo.core.run_directory import RunDirectory, Status
from mlxzo.core.run_history import evaluations, metric_text, tuned_merit

MARKS: dict[str, str] = {"running": "▶", "finished": "✓", "interrupted": "■", "failed": "✗", "died": "✗"}


@dataclass(frozen=True)
class Entry:
    """One row of the list. Empty text stands for a missing or damaged file."""

    run: RunDirectory
    started: float
    status: Status
    model: str
    task: str
    method: str
    scope: str
    step: int
    steps: int | None
    """None where only time or a plateau ends the run."""
    before: str
    after: str
    merit: float
    """Of the tuned metric, to sort by: higher is better; minus infinity without one."""
    stamp: float
    """Modification time of its events when the row was read, seconds since the epoch."""
    failed: events.Failed | None = None
    """The event that reports an early end."""
    problem: str = ""
    """The reason why its configuration cannot be read."""

    @property
    def words(self) -> str:
        """The text that a filter searches."""
        return " ".join((self.run.id, self.status, self.model, self.task, self.method, self.scope)).lower()


def look(root: str | Path) -> tuple[list[RunDirectory], list[Path]]:
    """The runs in a folder, newest first, and its other entries; reads each entry once."""
    found, others = [], []
    with contextlib.suppress(OSError):
        for folder in user_path(root).absolute().iterdir():
            try:
                found.append(((folder / "config.yaml").stat().st_mtime, folder))
            except OSError:
                others.append(folder)
    return [RunDirectory(path) for _, path in sorted(found, reverse=True)], others


def read_entry(run: RunDirectory) -> Entry:
    """The row of a run. Reads small files and the ends of large ones."""
    stamp = changed(run)
    config, problem = _config(run)
    result = run.result()
    status = "finished" if result is not None and not run.worker_is_alive() else run.status
    before, after = evaluations(result)
    step, steps = run.step_counts()
    last = None
    if status != "finished":
        # Steps end the search, so that only the end of the file is read if there is no failure.
        last = run.last_event(events.Failed, events.Step, events.Phase)
    return Entry(
        run=run,
        started=run.started(),
        status=status,
        model=Path(config.model).name if config else "",
        task=Path(config.task).stem if config else "",
        method=config.method if config else "",
        scope=config.scope if config else "",
        step=step,
        steps=steps,
        before=metric_text(before),
        after=metric_text(after),
        merit=tuned_merit(result),
        stamp=stamp,
        failed=last if isinstance(last, events.Failed) else None,
        problem=problem,
    )


def changed(run: RunDirectory) -> float:
    """Modification time of the run's events, seconds since the epoch; 0 without any."""
    try:
        return run.events_path.stat().st_mtime
    except OSError:
        return 0.0


def _config(run: RunDirectory) -> tuple[RunConfig | None, str]:
    """The configuration of a run; None, and the reason, where it cannot be read."""
    try:
        return run.config, ""
    except MlxzoError as error:
        return None, " ".join([error.message, *error.details])
