"""A run's events as series over its time: accuracy, loss and memory against seconds and steps.

The time of a run is that which `max_seconds` limits: of its steps and of its evaluations on the validation split. It
stands still while the run is paused, and `training_seconds` leaves the evaluations out as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from . import events


@dataclass(frozen=True)
class Measured:
    """The weights of a moment on the validation split; times are of when the evaluation was done, and `best` tells
    whether they were better than all before."""

    step: int
    seconds: float
    training_seconds: float
    value: float
    loss: float | None
    best: bool


@dataclass(frozen=True)
class Moment:
    """One step: the time when it was done, its losses, and MLX's memory in bytes. A loss that is not finite is None."""

    step: int
    seconds: float
    training_seconds: float
    loss: float | None
    smoothed_loss: float | None
    active_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Footprint:
    """What the system charged the run for, in bytes, while it was in a phase; `seconds` is the run's time by then."""

    seconds: float
    phase: str
    bytes: int


@dataclass
class Curves:
    """The series of one run; `add` takes its events in order, as they come or from a file.

    Attributes:
        zero_shot: evaluations before training, by split.
        validation: those on the validation split, zero-shot first.
        test: the best state on the test split, which nothing before has used to choose anything.
        peak_bytes: the most that MLX's arrays took; freed buffers that MLX keeps are not in it.
        footprint_bytes: the most that the system charged the run for, which is what a memory cap limits.
        seconds, training_seconds: the run's time so far.
    """

    zero_shot: dict[str, events.Evaluated] = field(default_factory=dict)
    validation: list[Measured] = field(default_factory=list)
    test: events.Evaluated | None = None
    steps: list[Moment] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    peak_bytes: int | None = None
    footprint_bytes: int | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    outcome: events.Finished | events.Failed | None = None

    @property
    def best(self) -> Measured | None:
        """The one of `validation` whose state the run keeps."""
        return next((each for each in reversed(self.validation) if each.best), None)

    @classmethod
    def read(cls, story: Iterable[tuple[events.Event, float]]) -> Curves:
        """The curves of events with their times, as `RunDirectory.events` gives them."""
        curves = cls()
        for event, _ in story:
            curves.add(event)
        return curves

    def add(self, event: events.Event) -> None:
        """Takes the next event of the run; kinds that are in no curve are passed over."""
        match event:
            case events.Step():
                self._step(event)
            case events.Evaluated(kind="zero-shot"):
                self.zero_shot[event.split] = event
                if event.split == "validation":
                    self._measured(event, best=True)
            case events.Evaluated(kind="validation"):
                self.seconds += event.seconds
                self._measured(event, best=event.best)
            case events.Evaluated(kind="test"):
                self.test = event
            case events.Memory():
                self.footprints.append(Footprint(self.seconds, event.phase, event.footprint_bytes))
                self.peak_bytes = max(self.peak_bytes or 0, event.peak_bytes)
                self.footprint_bytes = max(self.footprint_bytes or 0, event.peak_footprint_bytes)
            case events.Resumed():
                self._back_to(event.step)
            case events.Finished() | events.Failed():
                self.outcome = event

    def _back_to(self, step: int) -> None:
        """Forgets what came after a step from which the run went on: it is done again."""
        self.steps = [each for each in self.steps if each.step <= step]
        # An evaluation of that very step is made once more.
        self.validation = [each for each in self.validation if each.step < max(step, 1)]
        last = max((*self.steps[-1:], *self.validation[-1:]), key=lambda each: each.seconds, default=None)
        self.seconds, self.training_seconds = (last.seconds, last.training_seconds) if last else (0.0, 0.0)
        self.outcome = None

    def _step(self, event: events.Step) -> None:
        self.seconds += event.seconds
        self.training_seconds += event.seconds
        self.peak_bytes = max(self.peak_bytes or 0, event.peak_bytes)
        self.steps.append(
            Moment(
                event.step,
                self.seconds,
                self.training_seconds,
                event.loss,
                event.smoothed_loss,
                event.active_bytes,
                event.peak_bytes,
            )
        )

    def _measured(self, event: events.Evaluated, *, best: bool) -> None:
        measured = Measured(event.step, self.seconds, self.training_seconds, event.value, event.loss, best)
        self.validation.append(measured)
