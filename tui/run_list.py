"""What the list of runs says of each, read from disk without more work than a line is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory, Status
from mlxzo.core.run_history import evaluations, metric_text, tuned_merit

# In C where PyYAML was built with it: a thousand configurations have to be read.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MARKS: dict[str, str] = {"running": "▶", "finished": "✓", "interrupted": "■", "failed": "✗", "died": "✗"}


@dataclass(frozen=True)
class Entry:
    """One line of the list. Empty text where a file is missing or damaged."""

    run: RunDirectory
    started: float
    status: Status
    model: str
    task: str
    method: str
    scope: str
    step: int
    steps: int
    before: str
    after: str
    merit: float
    """The tuned metric, to sort by: the higher, the better; minus infinity where there is none."""
    stamp: float
    """When its events last changed, as the line was read."""
    failed: events.Failed | None = None
    """Why it ended early, where it told."""

    @property
    def words(self) -> str:
        """All that a filter looks at."""
        return " ".join((self.run.id, self.status, self.model, self.task, self.method, self.scope)).lower()


def newest_first(root: str | Path) -> list[RunDirectory]:
    """The runs under a folder; none where the folder is missing."""
    return look(root)[0]


def look(root: str | Path) -> tuple[list[RunDirectory], list[Path]]:
    """The runs under a folder, newest first, and the folders among them that are none, by one look at each."""
    found, others = [], []
    with contextlib.suppress(OSError):
        for folder in Path(root).expanduser().absolute().iterdir():
            try:
                found.append(((folder / "config.yaml").stat().st_mtime, folder))
            except OSError:
                others.append(folder)
    return [RunDirectory(path) for _, path in sorted(found, reverse=True)], others


def read_entry(run: RunDirectory) -> Entry:
    """The line of one run. Reads small files and the ends of large ones."""
    stamp = changed(run)
    config = _config(run)
    result = run.result()
    status = "finished" if result is not None and not run.worker_is_alive() else run.status
    before, after = evaluations(result)
    steps = _whole(config.get("steps"))
    step, last = steps, None
    if status != "finished":
        reached = run.last_event(events.Step)
        step = reached.step if isinstance(reached, events.Step) else 0
        # Beside steps, so that the end of the file is enough to know that there is none.
        last = run.last_event(events.Failed, events.Step, events.Phase)
    return Entry(
        run=run,
        started=run.started(),
        status=status,
        model=Path(str(config.get("model", ""))).name,
        task=Path(str(config.get("task", ""))).stem,
        method=str(config.get("method", "")),
        scope=str(config.get("scope", "")),
        step=step,
        steps=steps,
        before=metric_text(before),
        after=metric_text(after),
        merit=tuned_merit(result),
        stamp=stamp,
        failed=last if isinstance(last, events.Failed) else None,
    )


def changed(run: RunDirectory) -> float:
    """When the run's events last changed; 0 where it has none."""
    try:
        return run.events_path.stat().st_mtime
    except OSError:
        return 0.0


def _config(run: RunDirectory) -> dict[str, Any]:
    try:
        found = yaml.load((run.path / "config.yaml").read_bytes(), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def in_batches(runs: list[RunDirectory], first: int, rest: int) -> Iterator[list[Entry]]:
    """The lines of runs, a screenful at first and then more at a time."""
    size = first
    while runs:
        yield [read_entry(run) for run in runs[:size]]
        runs, size = runs[size:], rest
