"""How far batches are: their runs are ordinary runs, named after them, and a summary tells how those took.

A batch's folder lies among the runs, holds no run, and has `summary.jsonl`: an object a line with a run's `id`,
`status` and `seconds`. What cannot be read of it is passed over.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxzo.core.formatting import format_seconds

from .run_list import MARKS, Entry

SUMMARY = "summary.jsonl"
# The same batch asked for again tries these once more.
_FAILED = ("failed", "died", "does not fit")


@dataclass(frozen=True)
class SweepProgress:
    """A batch as its folder tells it.

    Attributes:
        told: by run, the status in the last line of the summary that names it; a run may not have begun.
        seconds: that runs took, as far as they are told.
        stamp: when the summary last changed.
    """

    name: str
    told: Mapping[str, str]
    seconds: tuple[float, ...] = ()
    stamp: float = 0.0

    def holds(self, run_id: str) -> bool:
        """Whether a run belongs to it, by the summary or by its name."""
        return run_id in self.told or run_id.startswith(f"{self.name}-")


@dataclass(frozen=True)
class Progress:
    """Runs of a batch by how they stand; `seconds_left` is None where nothing is known yet of how long one takes."""

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
        """How long it goes on yet; '' where that is not known, or nothing of it goes on."""
        known = self.running and self.seconds_left is not None
        return f"about {format_seconds(self.seconds_left)} left" if known else ""


def read_batches(folders: Iterable[Path]) -> list[SweepProgress]:
    """The batches among folders that hold no run, the one that changed last first."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            text = (folder / SUMMARY).read_text(encoding="utf-8", errors="replace")
            found.append(_batch(folder.name, text, (folder / SUMMARY).stat().st_mtime))
    return sorted(found, key=lambda batch: -batch.stamp)


def _batch(name: str, summary: str, stamp: float) -> SweepProgress:
    told: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for line in summary.splitlines():
        try:
            record = json.loads(line)
            told[str(record["id"])] = str(record.get("status", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(took := record.get("seconds"), int | float) and told[str(record["id"])] == "finished":
            seconds[str(record["id"])] = float(took)
    return SweepProgress(name, told, tuple(seconds.values()), stamp)


def progress(batch: SweepProgress, entries: Iterable[Entry]) -> Progress:
    """How far a batch is: by the runs themselves, and by its summary for those that have not begun."""
    members = {entry.run.id: entry for entry in entries if batch.holds(entry.run.id)}
    stands = {**batch.told, **{run_id: entry.status for run_id, entry in members.items()}}
    done, running = (sum(status == name for status in stands.values()) for name in ("finished", "running"))
    failed = sum(status in _FAILED for status in stands.values())
    waiting = len(stands) - done - failed - running
    left = None
    if batch.seconds:
        going_on = [e for e in members.values() if e.status == "running"]
        shares = waiting + sum(1 - e.step / max(1, e.steps) for e in going_on)
        # As many at once as there are now.
        left = statistics.fmean(batch.seconds) * shares / max(1, len(going_on))
    return Progress(done, failed, running, waiting, left)
