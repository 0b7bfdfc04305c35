"""Work that is left of planned runs, with its predicted memory and time. Imports no MLX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..core import events
from ..core.defaults import step_limit
from ..core.errors import DoesNotFit
from ..core.formatting import format_bytes
from ..core.meter import system_memory
from ..memory.forecast import Forecast, forecast
from ..memory.step_time import load_calibration
from .queue import run_directory
from .spec import PlannedRun

State = Literal["done", "running", "to resume", "to run"]


@dataclass(frozen=True)
class Prospect:
    """One run: its state, the steps that are done, and the forecast of the rest.

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
        """Its predicted peak; None if unknown, or if the run is done."""
        return self.forecast.footprint_bytes if self.forecast else None

    @property
    def reservation_bytes(self) -> int | None:
        """Memory to reserve for it, 0 if it is done; None if unknown."""
        return self.forecast.reservation_bytes if self.forecast else 0

    @property
    def fits(self) -> bool | None:
        """True if it is predicted to fit its cap and the machine; None if unknown, or if the run is done."""
        return self.forecast.fits(self.machine_bytes) if self.forecast else None

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of the steps that are left; None if unknown."""
        return self.forecast.seconds(self.planned.config, self.step) if self.forecast else 0.0

    @property
    def unknown(self) -> str:
        """The reason why the memory is unknown; else empty."""
        return self.forecast.unknown if self.forecast else ""

    @property
    def too_large(self) -> DoesNotFit | None:
        """The error of a run that needs more than the machine has; None for any other."""
        if self.forecast is None or (size := self.forecast.footprint_bytes) is None or size <= self.machine_bytes:
            return None
        return DoesNotFit(
            f"it is predicted to take {format_bytes(size)}, and the machine has {format_bytes(self.machine_bytes)}",
            "choose a smaller model or scope; `mlxzo plan` shows what fits",
            needed_bytes=self.forecast.reservation_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        config = self.planned.config
        return {
            "id": config.name,
            "options": dict(self.planned.options),
            "state": self.state,
            "step": self.step,
            "steps": step_limit(config),
            "memory_cap_bytes": config.memory_cap_bytes,
            "predicted_bytes": self.predicted_bytes,
            "fits": self.fits,
            "hours": None if self.seconds is None else self.seconds / 3600,
            "unknown": self.unknown,
        }


def prospects(runs: Iterable[PlannedRun]) -> list[Prospect]:
    """The state of each run, and a forecast of those that are not done."""
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
