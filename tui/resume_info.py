"""What of a run is on disk to go on from: its journal, its last snapshot, and the step that they lead to."""

from __future__ import annotations

from datetime import datetime

from mlxzo.core import events
from mlxzo.core.formatting import format_bytes
from mlxzo.core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from mlxzo.core.run_history import RunHistory
from mlxzo.zo.journal import JournalError, steps_in


def kept_rows(run: RunDirectory | None, history: RunHistory) -> list[tuple[str, str]]:
    """Names and values; of a recording, which has no directory, what its events tell."""
    rows = []
    if (best := history.saved.get(str(BEST_STATE))) is not None:
        rows.append(("best state", _saved(*best)))
    if history.step is None:
        return rows
    snapshot = history.saved.get(str(LAST_STATE))
    steps, journal = (None, "") if run is None else _journal(run)
    if journal:
        rows.append(("journal", journal))
    rows.append(("snapshot", _saved(*snapshot) if snapshot else "none yet; one every ten minutes"))
    if run is not None and not isinstance(history.outcome, events.Finished):
        rows.append(("resumable", _resumable(steps, snapshot[0].step if snapshot else 0)))
    return rows


def _saved(event: events.Saved, time: float) -> str:
    return f"of step {event.step}, {datetime.fromtimestamp(time):%H:%M:%S}, {format_bytes(event.bytes)}"


def _journal(run: RunDirectory) -> tuple[int | None, str]:
    """How many steps a run's journal holds, and that in words; None and '' where it has none."""
    path = run.path / JOURNAL
    try:
        steps, size = steps_in(path), path.stat().st_size
    except JournalError as error:
        return 0, f"✗ {error}"
    except OSError:
        return None, ""
    return steps, f"{steps:,} {'step' if steps == 1 else 'steps'} in {format_bytes(size)}"


def _resumable(steps: int | None, snapshot: int) -> str:
    """From which step a run would go on."""
    if steps is None:
        return f"from step {snapshot}, the snapshot" if snapshot else "from the start: no snapshot yet"
    if steps < snapshot:
        return "no: the journal ends before the snapshot"
    return f"from step {steps}" + (f" (snapshot + {steps - snapshot} steps)" if snapshot else "")
