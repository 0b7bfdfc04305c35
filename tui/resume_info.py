"""Facts on resuming a run: its journal, its checkpoints, and the step that it would resume from."""

from __future__ import annotations

from datetime import datetime

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import counted, format_bytes
from mlxzo.core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RunDirectory
from mlxzo.core.run_history import RunHistory
from mlxzo.zo.journal import JournalError, steps_in


def checkpoint_rows(run: RunDirectory | None, history: RunHistory) -> list[tuple[str, str]]:
    """Names and values; from the events alone for a recording, which has no directory (`run` is None)."""
    best, last = (history.saved.get(str(path)) for path in (BEST_STATE, LAST_STATE))
    saved = [f"best, {_saved(*best)}"] if best else []
    if history.step is None:
        return [("checkpoints", text) for text in saved]
    saved.append(f"last, {_saved(*last)}" if last else "last: none yet; one every ten minutes")
    rows: list[tuple[str, str]] = list(zip(("checkpoints", ""), saved, strict=False))
    steps, journal = (None, "") if run is None else _journal(run)
    if journal:
        rows.append(("journal", journal))
    if run is not None and not isinstance(history.outcome, events.Finished):
        rows.append(("resumable", _resumable(run, steps, last[0].step if last else 0)))
    return rows


def _saved(event: events.Saved, time: float) -> str:
    return f"of step {event.step}, {datetime.fromtimestamp(time):%H:%M:%S}, {format_bytes(event.bytes)}"


def _journal(run: RunDirectory) -> tuple[int | None, str]:
    """The number of steps in a run's journal, None without a usable one, and its size or its problem in words."""
    path = run.path / JOURNAL
    try:
        steps, size = steps_in(path), path.stat().st_size
    except JournalError as error:
        return None, f"✗ {error}"
    except OSError:
        return None, ""
    return steps, f"{counted(steps, 'step')} in {format_bytes(size)}"


def _resumable(run: RunDirectory, steps: int | None, checkpoint: int) -> str:
    """The step that a run which has begun would resume from, or the reason why it would be refused.

    Args:
        steps: in its journal; None without a usable one.
        checkpoint: the step of the last one; 0 for none.
    """
    try:
        journalled = run.config.method == "mezo"
    except MlxzoError as error:
        return f"no: {error.message}"
    if steps is None and journalled:
        return f"no: {JOURNAL} is {'damaged' if (run.path / JOURNAL).exists() else 'missing'}"
    if steps is None:
        return f"from step {checkpoint}, the checkpoint" if checkpoint else "from the start: no checkpoint yet"
    if steps < checkpoint:
        return f"from step {steps}: the journal ends before the checkpoint"
    return f"from step {steps}" + (f" (checkpoint + {counted(steps - checkpoint, 'step')})" if checkpoint else "")
