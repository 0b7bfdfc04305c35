"""Rows of the list of runs, read from disk with little work."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.errors import MlxzoError
from mlxzo.core.files import open_regular, user_path
from mlxzo.core.formatting import format_metric
from mlxzo.core.metrics import metric_named
from mlxzo.core.run_directory import RunDirectory, Status
from mlxzo.core.run_history import RunHistory, evaluations, metric_text, tuned_merit

# Of a file of events, where evaluations and memory of a run that has not finished are looked for.
_END_BYTES = 1 << 16

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
    estimator: str
    """Of mezo; '' for backpropagation."""
    scope: str
    name: str
    """As the user gave it; '' for a run that is named after its options."""
    seed: str
    step: int
    steps: int | None
    """None where only time or a plateau ends the run."""
    before: str
    after: str
    split: str
    """The split of `before` and `after`: `test`, or `validation` until that is measured; '' without either."""
    peak_bytes: int | None
    cap_bytes: int | None
    seconds: float | None
    """From its first event to its last, or its total time."""
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
        found = (self.run.id, self.status, self.model, self.task, self.method, self.estimator, self.scope)
        return " ".join(found).lower()


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
    step, steps = run.step_counts()
    found = _measured(run, result) if status == "finished" and result is not None else _measured_so_far(run)
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
        estimator=config.estimator_in_use if config else "",
        scope=config.scope if config else "",
        name=(config.name or "") if config else "",
        seed=str(config.seed) if config else "",
        step=step,
        steps=steps,
        **found,
        cap_bytes=config.memory_cap_bytes if config else None,
        stamp=stamp,
        failed=last if isinstance(last, events.Failed) else None,
        problem=problem,
    )


def _measured(run: RunDirectory, result: dict[str, Any]) -> dict[str, Any]:
    """The measured fields of a finished run's row."""
    before, after = evaluations(result)
    memory = result.get("memory")
    peak = memory.get("footprint_peak_bytes") if isinstance(memory, dict) else None
    seconds = result.get("total_seconds")
    return {
        "before": metric_text(before),
        "after": metric_text(after),
        "split": "" if after is None else "test" if isinstance(result.get("test"), dict) else "validation",
        "peak_bytes": peak if isinstance(peak, int) else None,
        "seconds": float(seconds) if isinstance(seconds, int | float) else None,
        "merit": tuned_merit(result),
    }


def _measured_so_far(run: RunDirectory) -> dict[str, Any]:
    """As `_measured`, for a run that has not finished: from the beginning and the end of its events, without steps."""
    history = RunHistory.read(events.read(line for line in _ends(run.events_path) if '"step"' not in line[:24]))
    after = history.test or history.best
    if after is not None and after.kind == "zero-shot":
        after = None
    split = "validation" if after is None else after.split
    before = history.zero_shot.get(split)
    metric = metric_named(None if after is None else after.metric)
    return {
        "before": "-" if before is None else format_metric(before.metric, before.value),
        "after": "-" if after is None else metric.text(after.value),
        "split": "" if before is None and after is None else split,
        "peak_bytes": history.footprint_bytes,
        "seconds": history.elapsed or None,
        "merit": float("-inf") if after is None or after.value is None else metric.merit(after.value),
    }


def _ends(path: Path) -> list[str]:
    """The lines in the first and the last part of a file; the two at the cut may be torn."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        head = file.read(_END_BYTES)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(len(head), size - _END_BYTES))
        return (head + file.read(_END_BYTES)).decode("utf-8", errors="replace").splitlines()
    return []


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
