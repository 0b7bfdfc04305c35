"""Progress of sweeps, from their runs, which are named after them, and from the summaries in their folders.

The folder of a sweep lies among the runs and holds `summary.jsonl`: an object a line with a run's `id`, `status` and
`seconds`. Lines that cannot be read are skipped.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxzo.core.files import last_lines
from mlxzo.core.formatting import left_text
from mlxzo.core.parsing import CONTENT_ERRORS

from .run_list import MARKS, Entry

SUMMARY = "summary.jsonl"
# The same sweep asked for again repeats these.
_FAILED = ("failed", "died", "does not fit")


@dataclass(frozen=True)
class SweepProgress:
    """The summary of a sweep.

    Attributes:
        statuses: by run, the status in the last line that names it; a run may not have begun.
        seconds: durations of the finished runs.
        stamp: the time of the summary's last change, in seconds since the epoch.
    """

    name: str
    statuses: Mapping[str, str]
    seconds: tuple[float, ...] = ()
    stamp: float = 0.0

    def holds(self, run_id: str) -> bool:
        """True if a run belongs to it, by the summary or by the run's name."""
        return run_id in self.statuses or run_id.startswith(f"{self.name}-")


@dataclass(frozen=True)
class Progress:
    """Numbers of a sweep's runs by status; `seconds_left` is None where no run has finished."""

    done: int
    failed: int
    running: int
    waiting: int
    seconds_left: float | None

    @property
    def total(self) -> int:
        return self.done + self.failed + self.running + self.waiting

    @property
    def text(self) -> str:
        """`4 of 12 done · 1 failed · 1 running · 6 waiting`, with the marks of the list."""
        parts = [f"{MARKS['finished']} {self.done} of {self.total} done"]
        parts += [f"{MARKS['failed']} {self.failed} failed"] if self.failed else []
        parts += [f"{MARKS['running']} {self.running} running"] if self.running else []
        parts += [f"○ {self.waiting} waiting"] if self.waiting else []
        return " · ".join(parts)

    @property
    def left(self) -> str:
        """The time that is left, in words; empty if unknown, or if no run is in progress."""
        if not self.running or self.seconds_left is None:
            return ""
        return left_text(self.seconds_left)


def read_sweeps(folders: Iterable[Path]) -> list[SweepProgress]:
    """The sweeps among folders that hold no run, the latest change first."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            lines = last_lines(folder / SUMMARY, None)
            found.append(_read(folder.name, lines, (folder / SUMMARY).stat().st_mtime))
    return sorted(found, key=lambda sweep: -sweep.stamp)


def _read(name: str, summary: list[str], stamp: float) -> SweepProgress:
    statuses: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for line in summary:
        try:
            record = json.loads(line)
            run_id = str(record["id"])
            statuses[run_id] = str(record.get("status", ""))
            if isinstance(took := record.get("seconds"), int | float) and statuses[run_id] == "finished":
                seconds[run_id] = float(took)
        except CONTENT_ERRORS:
            continue
    return SweepProgress(name, statuses, tuple(seconds.values()), stamp)


def progress(sweep: SweepProgress, entries: Iterable[Entry]) -> Progress:
    """The progress of a sweep, from its runs, and from its summary for those that have not begun."""
    members = {entry.run.id: entry for entry in entries if sweep.holds(entry.run.id)}
    statuses = [*{**sweep.statuses, **{run_id: entry.status for run_id, entry in members.items()}}.values()]
    done, running = statuses.count("finished"), statuses.count("running")
    failed = sum(status in _FAILED for status in statuses)
    waiting = len(statuses) - done - failed - running
    left = None
    if sweep.seconds:
        unfinished = [
            1 - each.step / each.steps if each.steps else 1.0 for each in members.values() if each.status == "running"
        ]
        # As many run at once as do now.
        left = statistics.fmean(sweep.seconds) * (waiting + sum(unfinished)) / max(1, len(unfinished))
    return Progress(done, failed, running, waiting, left)
