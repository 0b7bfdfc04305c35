"""Results of the runs of a sweep: a record a run, and their file, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import EXIT_DONE, DoesNotFit, WorkerDied
from ...core.files import explained, write_atomic
from ...core.formatting import json_text
from ..spec import PlannedRun
from .run_record import ComparedRun

SUMMARY = "summary.jsonl"

Record = Mapping[str, Any]


def record(planned: PlannedRun) -> dict[str, Any]:
    """The present state of a run on disk. Unknown values are None.

    `value` and `loss` are those of the best state, on the test split, or on the validation split where there is no
    other; `zero_shot` and `majority` are of the same split. `seconds` are those of steps and of evaluations on the
    validation split; `peak_bytes` is the peak memory that the system charged the run for.
    """
    found = ComparedRun.planned(planned.config.name or "", planned.config)
    status, history = found.status, found.history
    after = history.test or history.best
    split = "test" if history.test else "validation"
    before = history.zero_shot.get(split)
    return {
        "id": planned.config.name,
        "options": dict(planned.options),
        "status": status,
        "exit_code": _exit_code(found),
        "metric": before.metric if before else None,
        "split": split if after else None,
        "value": after.value if after else None,
        "loss": after.loss if after else None,
        "zero_shot": before.value if before else None,
        "majority": before.majority if before else None,
        "steps": found.steps,
        "best_step": history.best.step if history.best else None,
        "seconds": history.seconds,
        "peak_bytes": history.footprint_bytes,
        "needed_bytes": found.needed_bytes,
        "problem": found.failed.message if found.failed and status != "running" else None,
    }


def refused(planned: PlannedRun, problem: DoesNotFit) -> dict[str, Any]:
    """As `record`, of a run that is not started, since it would not fit."""
    outcome = {"status": "does not fit", "exit_code": problem.exit_code, "needed_bytes": problem.needed_bytes}
    return {**record(planned), **outcome, "problem": problem.message}


def _exit_code(found: ComparedRun) -> int | None:
    """The exit code that `mlxzo train` would have had; None for a run that has not ended."""
    if found.status in ("running", "not run"):
        return None
    if found.status == "finished":
        return EXIT_DONE
    return found.failed.exit_code if found.failed else WorkerDied.exit_code


def exit_code(records: Iterable[Record]) -> int:
    """0 if every run has finished, else the exit code of the first that failed."""
    return next((each["exit_code"] for each in records if each["exit_code"]), EXIT_DONE)


def write_summary(records: Iterable[Record], folder: Path) -> None:
    """Replaces the file of records, whole or not at all.

    Raises:
        DoesNotFit: the disk is full. ConfigError: the folder cannot be written.
    """
    with explained(folder, "the summary"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SUMMARY, "".join(json_text(each) + "\n" for each in records))
