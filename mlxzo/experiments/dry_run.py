"""What is left to do of planned runs, and what it is predicted to take. Imports no MLX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..core import events
from ..core.errors import DoesNotFit
from ..core.formatting import format_bytes
from ..core.meter import system_memory
from ..memory.forecast import Forecast, forecast
from ..memory.step_time import load_calibration
from .queue import run_directory
from .sweep import PlannedRun

State = Literal["done", "running", "to resume", "to run"]


@dataclass(frozen=True)
class Prospect:
    """One run: how it stands, `step` steps done, and what the rest of it is going to take.

    Attributes:
        forecast: None where the run is done.
        machine_bytes: the machine's memory.
    """

    planned: PlannedRun
    state: State
    step: int
    forecast: Forecast | None
    machine_bytes: int

    @property
    def is_done(self) -> bool:
        return self.forecast is None

    @property
    def predicted_bytes(self) -> int | None:
        """Its predicted peak; None: not known, or it is done."""
        return self.forecast.footprint_bytes if self.forecast else None

    @property
    def claim_bytes(self) -> int | None:
        """What has to be set aside for it; None: not known."""
        return self.forecast.claim_bytes if self.forecast else 0

    @property
    def fits(self) -> bool | None:
        """Whether it is predicted to fit its cap and the machine; None: not known, or it is done."""
        return self.forecast.fits(self.machine_bytes) if self.forecast else None

    @property
    def seconds(self) -> float | None:
        """A guess of how long its steps take from here on; None: not known."""
        return self.forecast.seconds(self.planned.config, self.step) if self.forecast else 0.0

    @property
    def unknown(self) -> str:
        """Why the memory is not known, in words; else empty."""
        return self.forecast.unknown if self.forecast else ""

    @property
    def too_large(self) -> DoesNotFit | None:
        """The error for a run that the machine has no room for, whatever else it does."""
        size = self.predicted_bytes
        if size is None or size <= self.machine_bytes:
            return None
        return DoesNotFit(
            f"it is predicted to take {format_bytes(size)}, and the machine has {format_bytes(self.machine_bytes)}",
            "choose a smaller model or scope; `mlxzo plan` shows what fits",
            needed_bytes=self.forecast.claim_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        config = self.planned.config
        return {
            "id": config.name,
            "options": dict(self.planned.options),
            "state": self.state,
            "step": self.step,
            "steps": config.steps,
            "memory_cap_bytes": config.memory_cap_bytes,
            "predicted_bytes": self.predicted_bytes,
            "fits": self.fits,
            "hours": None if self.seconds is None else self.seconds / 3600,
            "unknown": self.unknown,
        }


def prospects(runs: Iterable[PlannedRun]) -> list[Prospect]:
    """How each run stands, and what is to come of those that are not done."""
    machine, _ = system_memory()
    calibration = load_calibration()
    found = []
    for planned in runs:
        run = run_directory(planned.config)
        last = run.last_event(events.Step) if run.has_work else None
        step = last.step if isinstance(last, events.Step) else 0
        status = run.status
        if status == "finished":
            found.append(Prospect(planned, "done", step, None, machine))
            continue
        state: State = "running" if status == "running" else "to resume" if run.has_work else "to run"
        found.append(Prospect(planned, state, step, forecast(planned.config, calibration), machine))
    return found
