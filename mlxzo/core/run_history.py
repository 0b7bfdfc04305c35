"""The history of a run, folded from its events; every display and report of a run reads it.

Three times, in seconds: `training_seconds` sums the steps; `seconds`, which `max_seconds` limits, adds the evaluations
on the validation split; `elapsed` is the time since the first event, pauses and interruptions included.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from . import events
from .metrics import metric_named

# No metric is as large; a whole number in a damaged file may exceed all that a float can hold.
_LARGEST = 1e100


class Columns:
    """A table of numbers (float64) that grows by rows and is read by columns; NaN stands for a None that was added."""

    def __init__(self, *names: str) -> None:
        self._columns = {name: array("d") for name in names}

    def append(self, *row: float | None) -> None:
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
    """One evaluation and the times of its end, in seconds (see the module)."""

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
    """The state of one run after its events so far; `add` takes them in order.

    Steps and evaluations that a resumed run repeats count once.

    Attributes:
        step: the last step's event.
        steps: one row per step.
        footprints: samples of the footprint, in bytes; for a run without samples, the memory of MLX's arrays.
        evaluations: in order of time; zero-shot and test once per split.
        saved: the last checkpoint at each path in the run directory, and its time (seconds since the epoch).
        populations: one row per step of ES: mean and standard deviation of the members' rewards, and the share of
            answers that changed.
        population: the last step's event of that kind; `written`: the last one with answers.
        samples: answers on validation examples: those before training, then the latest.
        phases: the name of each phase and the elapsed seconds at its first beginning.
        began, latest: time of the first and of the latest event, in seconds since the epoch.
        peak_bytes: the peak of MLX's live arrays; excludes its cache of freed buffers.
        footprint_bytes: the peak of the footprint, which a memory cap limits.
        version: the number of events so far, by which a display detects a change.
    """

    loaded: events.Loaded | None = None
    step: events.Step | None = None
    memory: events.Memory | None = None
    ranks: events.RankStats | None = None
    population: events.Population | None = None
    written: events.Population | None = None
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
    populations: Columns = field(default_factory=lambda: Columns("step", "mean", "deviation", "changed"))
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
        """The peak of the footprint or, without samples of it, of MLX's arrays; 0 before the first event of either."""
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
        """The evaluation of the best checkpoint on the test split."""
        found = (each.evaluation for each in reversed(self.evaluations))
        return next((each for each in found if each.kind == "test"), None)

    @property
    def best_measurement(self) -> Measurement | None:
        """The evaluation of the best checkpoint on the validation split; zero-shot where training improved nothing."""
        found = reversed(self.validation)
        return next((each for each in found if each.evaluation.best or each.evaluation.kind == "zero-shot"), None)

    @property
    def best(self) -> events.Evaluated | None:
        """The evaluation of `best_measurement`."""
        found = self.best_measurement
        return None if found is None else found.evaluation

    @property
    def metric(self) -> str | None:
        """The name of the metric; None before the first evaluation."""
        return self.evaluations[0].evaluation.metric if self.evaluations else None

    @property
    def objective(self) -> str:
        """The option of that name; `loss` until the model is loaded."""
        return "loss" if self.loaded is None else self.loaded.objective

    def total(self, column: str) -> int:
        """The sum of a column of counts in `steps`."""
        return int(sum(self.steps[column]))

    def tie_share(self, queries: int = 1) -> float:
        """The share of all directions so far, `queries` per step, that had the same loss on both sides: no signal."""
        return self.total("ties") / (len(self.steps) * queries) if len(self.steps) else 0.0

    def add(self, event: events.Event, time: float = 0.0) -> None:
        """Takes the next event and its time in seconds since the epoch, from which `elapsed` follows."""
        if self.began is None:
            self.began = time
        self.latest = max(self.latest, time)
        self.version += 1
        match event:
            case events.Step():
                self._add_step(event)
            case events.Population():
                self._add_population(event)
            case events.Evaluated():
                self._add_evaluation(event)
            case events.Memory():
                self._add_memory(event)
            case events.Phase():
                self.phase, self.progress, self.outcome, self.paused = event.phase, None, None, False
                # `train` returns after every evaluation, and is listed once.
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
                # An evaluation after that very step is repeated.
                self.back_to(event.step, max(event.step, 1) - 1)
            case events.Finished() | events.Failed():
                self.outcome, self.progress, self.paused = event, None, False

    def back_to(self, step: int, evaluated: int) -> None:
        """Drops the steps after `step` and the evaluations after step `evaluated`, which are repeated."""
        for table in (self.steps, self.populations):
            table.cut(bisect_right(table["step"], step))
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

    def _add_population(self, event: events.Population) -> None:
        # It precedes the event of its step, which a run that was killed in between makes again.
        if len(self.populations) and event.step <= self.populations["step"][-1]:
            self.back_to(event.step - 1, event.step - 1)
        self.population = event
        if event.answers:
            self.written = event
        self.populations.append(event.step, fmean(event.rewards), pstdev(event.rewards), event.changed)

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
            # MLX's arrays, taken until now, are another measure.
            self.footprints.cut(0)
        self.memory = event
        self.footprints.append(self.elapsed, self.seconds, event.footprint_bytes)
        self.peak_bytes = max(self.peak_bytes or 0, event.peak_bytes)
        self.footprint_bytes = max(self.footprint_bytes or 0, event.peak_footprint_bytes)

    def _add_arrays(self, count: int) -> None:
        """Takes the memory of MLX's arrays in place of the footprint, for a run without samples of it."""
        if self.memory is None:
            self.footprints.append(self.elapsed, self.seconds, count)


def evaluations(result: dict[str, Any] | None) -> tuple[dict | None, dict | None]:
    """The zero-shot and the tuned evaluation in a result, on the test split or, without one, on validation."""
    for split, tuned in (("test", ("test",)), ("validation", ("best", "validation"))):
        after = _inside(result, *tuned)
        if after is not None:
            return _inside(result, "zero_shot", split), after
    return None, None


def tuned_merit(result: dict[str, Any] | None) -> float:
    """The tuned metric in a result as a sort key: the higher, the better; minus infinity without an evaluation."""
    evaluation = evaluations(result)[1]
    value = _value(evaluation)
    return float("-inf") if evaluation is None or value is None else metric_named(evaluation.get("metric")).merit(value)


def metric_text(evaluation: dict | None) -> str:
    """The value of an evaluation in a result as text; `-` without an evaluation."""
    value = _value(evaluation)
    return "-" if evaluation is None or value is None else metric_named(evaluation.get("metric")).text(value)


def _value(evaluation: dict | None) -> float | None:
    value = evaluation and evaluation.get("value")
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else None


def _inside(value: Any, *keys: str) -> dict | None:
    """A mapping inside nested mappings; None where a file of another version, or a damaged one, lacks it."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None
