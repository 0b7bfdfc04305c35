"""A run so far, folded from its events: every view of a run reads this one account of it.

A run has two times. `seconds` is the time that `max_seconds` limits, of steps and of evaluations on the validation
split; it stands still while the run is paused, and `training_seconds` leaves the evaluations out as well. `elapsed` is
the time since the run's first event, whatever happened in between.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import events
from .metrics import metric_named


class Columns:
    """A table of numbers that grows by rows and is read by columns. A number that is not finite is NaN."""

    def __init__(self, *names: str) -> None:
        self._columns = {name: array("d") for name in names}

    def append(self, *row: float | None) -> None:
        # A number that was not finite travels as null.
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(math.nan if value is None else value)

    def cut(self, length: int) -> None:
        """Drops all rows after the first `length`."""
        for column in self._columns.values():
            del column[length:]

    def __getitem__(self, name: str) -> array[float]:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))


@dataclass(frozen=True)
class Measurement:
    """One evaluation and the times when it was done, in seconds (see the module)."""

    evaluation: events.Evaluated
    elapsed: float
    seconds: float
    training_seconds: float

    @property
    def step(self) -> int:
        return self.evaluation.step

    @property
    def value(self) -> float:
        return self.evaluation.value


@dataclass(eq=False)
class RunHistory:
    """The events of one run so far; `add` takes them in order.

    What a resumed run does again replaces what it had done: every step and every evaluation counts once.

    Attributes:
        step: the last step's event.
        steps: a row a step, from 1.
        footprints: samples of what the system charges the run for; of a run without samples, what MLX's arrays take.
        evaluations: in order of time; zero-shot and test once a split.
        saved: by the file's path in the run directory: the last state saved there, and when (seconds since the epoch).
        samples: answers on validation examples: those before training, then the latest.
        phases: the name of each and the elapsed seconds at its first beginning.
        began, latest: time of the first and of the latest event, seconds since the epoch.
        peak_bytes: the most that MLX's arrays took; freed buffers that MLX keeps are not in it.
        footprint_bytes: the most that the system charged the run for, which is what a memory cap limits.
        version: the number of events, by which a screen knows whether to draw.
    """

    loaded: events.Loaded | None = None
    step: events.Step | None = None
    memory: events.Memory | None = None
    ranks: events.RankStats | None = None
    progress: events.Progress | None = None
    outcome: events.Finished | events.Failed | None = None
    samples: tuple[events.Samples, ...] = ()
    saved: dict[str, tuple[events.Saved, float]] = field(default_factory=dict)
    evaluations: list[Measurement] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    phase: str = ""
    paused: bool = False
    began: float | None = None
    latest: float = 0.0
    seconds: float = 0.0
    training_seconds: float = 0.0
    peak_bytes: int | None = None
    footprint_bytes: int | None = None
    version: int = 0
    steps: Columns = field(
        default_factory=lambda: Columns(
            *("step", "elapsed", "seconds", "training_seconds", "loss", "smoothed_loss"),
            *("steps_per_second", "tokens_per_second", "tokens", "padded_tokens", "ties"),
        )
    )
    footprints: Columns = field(default_factory=lambda: Columns("elapsed", "seconds", "bytes"))

    @classmethod
    def read(cls, timed: Iterable[tuple[events.Event, float]]) -> RunHistory:
        """The history of events with their times, as `RunDirectory.events` gives them."""
        history = cls()
        for event, time in timed:
            history.add(event, time)
        return history

    @property
    def elapsed(self) -> float:
        """Seconds from the first event to the latest."""
        return 0.0 if self.began is None else self.latest - self.began

    @property
    def cap_bytes(self) -> int | None:
        return None if self.memory is None else self.memory.cap_bytes

    @property
    def most_bytes(self) -> int:
        """The most memory seen: of the footprint or, where there are no samples of it, of MLX's arrays; 0 for none."""
        return self.footprint_bytes or int(max(self.footprints["bytes"], default=0))

    @property
    def validation(self) -> list[Measurement]:
        """The evaluations on the validation split, zero-shot first."""
        return [each for each in self.evaluations if each.evaluation.split == "validation"]

    @property
    def zero_shot(self) -> dict[str, events.Evaluated]:
        """The evaluations before training, by split."""
        found = (each.evaluation for each in self.evaluations)
        return {each.split: each for each in found if each.kind == "zero-shot"}

    @property
    def test(self) -> events.Evaluated | None:
        """The evaluation of the best state on the test split, which has served no choice before."""
        found = (each.evaluation for each in reversed(self.evaluations))
        return next((each for each in found if each.kind == "test"), None)

    @property
    def best_measurement(self) -> Measurement | None:
        """The evaluation on the validation split whose state the run keeps: zero-shot where nothing was better."""
        found = reversed(self.validation)
        return next((each for each in found if each.evaluation.best or each.evaluation.kind == "zero-shot"), None)

    @property
    def best(self) -> events.Evaluated | None:
        """The evaluation of `best_measurement`."""
        found = self.best_measurement
        return None if found is None else found.evaluation

    @property
    def metric(self) -> str | None:
        """The name of the metric that the run is measured by; None before its first evaluation."""
        return self.evaluations[0].evaluation.metric if self.evaluations else None

    def total(self, column: str) -> int:
        """The sum of a column of `steps` that counts something."""
        return int(sum(self.steps[column]))

    def tie_share(self, queries: int = 1) -> float:
        """The share of all directions so far (`queries` a step) on whose two sides the loss was equal: no signal."""
        return self.total("ties") / (len(self.steps) * queries) if len(self.steps) else 0.0

    def add(self, event: events.Event, time: float = 0.0) -> None:
        """Takes the next event of the run, and its time in seconds since the epoch, which only `elapsed` needs."""
        if self.began is None:
            self.began = time
        self.latest = max(self.latest, time)
        self.version += 1
        match event:
            case events.Step():
                self._add_step(event)
            case events.Evaluated():
                self._add_evaluation(event)
            case events.Memory():
                self._add_memory(event)
            case events.Phase():
                self.phase, self.progress, self.outcome, self.paused = event.phase, None, None, False
                # Training goes on after every evaluation.
                if event.phase not in ("evaluate", "save") and event.phase not in (name for name, _ in self.phases):
                    self.phases.append((event.phase, self.elapsed))
            case events.Progress():
                self.progress = event
            case events.Loaded():
                self.loaded, self.progress = event, None
                self._add_arrays(event.active_bytes)
            case events.Saved():
                self.saved[event.path] = event, time
            case events.RankStats():
                self.ranks = event
            case events.Samples(split="validation"):
                self.samples = (*self.samples[:1], event)
            case events.Paused() | events.Unpaused():
                self.paused = isinstance(event, events.Paused)
            case events.Resumed():
                # An evaluation of that very step is made once more.
                self.back_to(event.step, max(event.step, 1) - 1)
            case events.Finished() | events.Failed():
                self.outcome, self.progress, self.paused = event, None, False

    def back_to(self, step: int, evaluated: int) -> None:
        """Drops the steps after `step` and the evaluations after step `evaluated`: they are done again."""
        self.steps.cut(bisect_right(self.steps["step"], step))
        self.evaluations = [
            each for each in self.evaluations if each.evaluation.kind != "validation" or each.step <= evaluated
        ]
        times = [(each.seconds, each.training_seconds) for each in self.validation[-1:]]
        if len(self.steps):
            times.append((self.steps["seconds"][-1], self.steps["training_seconds"][-1]))
        self.seconds, self.training_seconds = max(times, default=(0.0, 0.0))
        self.outcome = None

    def _add_step(self, event: events.Step) -> None:
        if len(self.steps) and event.step <= self.steps["step"][-1]:
            self.back_to(event.step - 1, event.step - 1)
        self.step, self.progress, self.outcome, self.phase = event, None, None, "train"
        self.seconds += event.seconds
        self.training_seconds += event.seconds
        self.peak_bytes = max(self.peak_bytes or 0, event.peak_bytes)
        self.steps.append(
            *(event.step, self.elapsed, self.seconds, self.training_seconds, event.loss, event.smoothed_loss),
            *(event.steps_per_second, event.tokens_per_second, event.tokens, event.padded_tokens, event.ties),
        )
        self._add_arrays(event.active_bytes + event.cache_bytes)

    def _add_evaluation(self, event: events.Evaluated) -> None:
        self.progress = None
        if event.kind == "validation":
            self.seconds += event.seconds
        else:
            key = (event.kind, event.split)
            self.evaluations = [e for e in self.evaluations if (e.evaluation.kind, e.evaluation.split) != key]
        self.evaluations.append(Measurement(event, self.elapsed, self.seconds, self.training_seconds))

    def _add_memory(self, event: events.Memory) -> None:
        if self.memory is None:
            # What was taken in its place is another measure.
            self.footprints.cut(0)
        self.memory = event
        self.footprints.append(self.elapsed, self.seconds, event.footprint_bytes)
        self.peak_bytes = max(self.peak_bytes or 0, event.peak_bytes)
        self.footprint_bytes = max(self.footprint_bytes or 0, event.peak_footprint_bytes)

    def _add_arrays(self, count: int) -> None:
        """Takes the memory of MLX's arrays for the footprint of a run without samples of it."""
        if self.memory is None:
            self.footprints.append(self.elapsed, self.seconds, count)


def evaluations(result: dict[str, Any] | None) -> tuple[dict | None, dict | None]:
    """The zero-shot and the tuned evaluation in a result: on the test split, or on validation where there is none."""
    for split, tuned in (("test", ("test",)), ("validation", ("best", "validation"))):
        after = _inside(result, *tuned)
        if after is not None:
            return _inside(result, "zero_shot", split), after
    return None, None


def tuned_merit(result: dict[str, Any] | None) -> float:
    """The tuned evaluation in a result, to sort runs by: the higher, the better; minus infinity where there is none."""
    evaluation = evaluations(result)[1]
    value = _value(evaluation)
    return float("-inf") if evaluation is None or value is None else metric_named(evaluation.get("metric")).merit(value)


def metric_text(evaluation: dict | None) -> str:
    """The value of an evaluation in a result; `-` where there is none."""
    value = _value(evaluation)
    return "-" if evaluation is None or value is None else metric_named(evaluation.get("metric")).text(value)


def _value(evaluation: dict | None) -> float | None:
    value = evaluation and evaluation.get("value")
    return float(value) if isinstance(value, int | float) else None


def _inside(value: Any, *keys: str) -> dict | None:
    """A mapping inside nested mappings; None where a file of another version, or a damaged one, has none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None
