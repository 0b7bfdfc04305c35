"""What came of the runs of a batch: one record a run, and the file of them, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import EXIT_DONE, DoesNotFit, WorkerDied
from ...core.files import explained, write_atomic
from ..spec import PlannedRun
from .run_record import ComparedRun

SUMMARY = "summary.jsonl"

Record = Mapping[str, Any]


def record(planned: PlannedRun) -> dict[str, Any]:
    """What a run has come to, as it lies on the disk.

    `value` and `loss` are those of the best state, on the test split, or on the validation split where there is no
    other; `zero_shot` and `majority` are of the same split. `seconds` are those of steps and of evaluations on the
    validation split; `peak_bytes` is the most that the system charged the run for. What is not known is None.
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
    told = {"status": "does not fit", "exit_code": problem.exit_code, "needed_bytes": problem.needed_bytes}
    return {**record(planned), **told, "problem": problem.message}


def _exit_code(found: ComparedRun) -> int | None:
    """How the run's command would have ended; None where it has not ended."""
    if found.status in ("running", "not run"):
        return None
    if found.status == "finished":
        return EXIT_DONE
    return found.failed.exit_code if found.failed else WorkerDied.exit_code


def exit_code(records: Iterable[Record]) -> int:
    """0 if every run has finished, else the exit code of the first that failed."""
    return next((each["exit_code"] for each in records if each["exit_code"]), EXIT_DONE)


def write_summary(records: Iterable[Record], folder: Path) -> None:
    """Writes the records in place of those of before, whole or not at all.

    Raises:
        DoesNotFit: the disk is full. ConfigError: the folder cannot be written.
    """
    with explained(folder, "the summary"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SUMMARY, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))
