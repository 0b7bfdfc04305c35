"""What a run's events add up to, in the shape that screens draw: columns of numbers, evaluations, phases, the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mlxzo.core import events
from mlxzo.core.formatting import evaluated_line, format_seconds, loaded_line


class Column:
    """Numbers that come one by one and are looked at as an array; appending costs no copy of what is there."""

    def __init__(self) -> None:
        self._buffer = np.empty(256)
        self._length = 0

    def append(self, value: float | None) -> None:
        if self._length == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        # A number that was not finite travels as null.
        self._buffer[self._length] = np.nan if value is None else value
        self._length += 1

    def cut(self, length: int) -> None:
        """Forgets all but the first `length` numbers."""
        self._length = min(length, self._length)

    @property
    def values(self) -> np.ndarray:
        """float64 [length], a view: valid until the next `append`."""
        return self._buffer[: self._length]

    def __len__(self) -> int:
        return self._length


@dataclass(frozen=True)
class LogLine:
    """One line of the event log: when (seconds since the epoch), a mark and the words."""

    time: float
    mark: str
    text: str


# Words for the phases of a run, as the log and the status line say them.
PHASES = {
    "load": "loading",
    "probe": "probing",
    "baseline": "zero-shot",
    "train": "training",
    "evaluate": "evaluating",
    "test": "testing",
    "save": "saving",
}


# Columns with a number a step.
_OF_STEPS = ("steps", "loss", "smoothed", "step_seconds", "steps_per_second", "tokens_per_second", "ties")


@dataclass(eq=False)
class History:
    """The events of one run so far. `add` takes them in order; a step that comes again (after resuming) replaces."""

    loaded: events.Loaded | None = None
    step: events.Step | None = None
    saved: dict[str, tuple[events.Saved, float]] = field(default_factory=dict)
    """By the file's place in the run directory: the last state saved there, and when (seconds since the epoch)."""
    memory: events.Memory | None = None
    ranks: events.RankStats | None = None
    progress: events.Progress | None = None
    outcome: events.Finished | events.Failed | None = None
    samples: tuple[events.Samples, ...] = ()
    """Answers on validation examples: those before training, then the latest."""
    phase: str = ""
    paused: bool = False
    began: float | None = None
    """Time of the first event, seconds since the epoch."""
    latest: float = 0.0
    evaluations: list[tuple[events.Evaluated, float]] = field(default_factory=list)
    """With the seconds since the run began."""
    phases: list[tuple[str, float]] = field(default_factory=list)
    """Name, and the seconds since the run began."""
    log: list[LogLine] = field(default_factory=list)
    version: int = 0
    """Rises with every event, so that a screen knows whether to draw."""

    def __post_init__(self) -> None:
        self.columns = {name: Column() for name in (*_OF_STEPS, "memory_seconds", "memory_bytes")}

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a column."""
        return self.columns[name].values

    @property
    def seconds(self) -> float:
        """How long the run has gone on, as its events tell."""
        return 0.0 if self.began is None else self.latest - self.began

    @property
    def peak_bytes(self) -> int:
        """The most memory seen."""
        if self.memory is not None:
            return self.memory.peak_footprint_bytes
        seen = self["memory_bytes"]
        return int(seen.max()) if len(seen) else 0

    @property
    def cap_bytes(self) -> int | None:
        return None if self.memory is None else self.memory.cap_bytes

    def zero_shot(self, split: str = "validation") -> events.Evaluated | None:
        return next((e for e, _ in self.evaluations if e.kind == "zero-shot" and e.split == split), None)

    def best(self) -> events.Evaluated | None:
        """The best evaluation on the validation split so far, the zero-shot one included."""
        on_validation = [e for e, _ in self.evaluations if e.split == "validation"]
        return next((e for e in reversed(on_validation) if e.best), on_validation[0] if on_validation else None)

    def tested(self) -> events.Evaluated | None:
        return next((e for e, _ in reversed(self.evaluations) if e.kind == "test"), None)

    def add(self, event: events.Event, time: float) -> None:
        """Takes in the next event of the run."""
        if self.began is None:
            self.began = time
        self.latest = max(self.latest, time)
        self.version += 1
        match event:
            case events.Step():
                self._add_step(event)
            case events.Evaluated():
                self.progress = None
                self.evaluations = [(e, t) for e, t in self.evaluations if (e.kind, e.split, e.step) != _key(event)]
                self.evaluations.append((event, self.seconds))
                self._say(time, _evaluation_mark(event), evaluated_line(replace(event, best=False)))
            case events.Phase():
                self.phase, self.progress, self.outcome, self.paused = event.phase, None, None, False
                # Training goes on after every evaluation; each is told once, by its result.
                if event.phase not in ("evaluate", "save") and event.phase not in (name for name, _ in self.phases):
                    self.phases.append((event.phase, self.seconds))
                    words = PHASES.get(event.phase, event.phase)
                    self._say(time, "▸", words + (f": {event.detail}" if event.detail else ""))
            case events.Progress():
                self.progress = event
            case events.Loaded():
                self.loaded, self.progress = event, None
                if self.memory is None:
                    self._remember(event.active_bytes)
                self._say(time, "▸", loaded_line(event))
            case events.Saved():
                self.saved[event.path] = event, time
            case events.Memory():
                self.memory = event
                self._remember(event.footprint_bytes)
            case events.RankStats():
                self.ranks = event
            case events.Samples():
                if event.split == "validation":
                    self.samples = (*self.samples[:1], event)
            case events.Paused():
                self.paused = True
                self._say(time, "‖", f"paused after step {event.step}")
            case events.Unpaused():
                self.paused = False
                self._say(time, "▸", f"continued after {format_seconds(event.seconds)}")
            case events.Note():
                self._say(time, "i", event.text)
            case events.Failed():
                self.outcome, self.progress, self.paused = event, None, False
                self._say(time, "✗", f"{event.title}: {event.message}")
                if event.fix:
                    self._say(time, " ", f"Fix: {event.fix}")
            case events.Finished():
                self.outcome, self.progress = event, None
                self._say(time, "✓", f"finished after {format_seconds(self.seconds)}")

    def _add_step(self, event: events.Step) -> None:
        first = int(np.searchsorted(self["steps"], event.step))
        if first < len(self["steps"]):
            for name in _OF_STEPS:
                self.columns[name].cut(first)
        self.step, self.progress, self.outcome = event, None, None
        self.phase = "train"
        for name, value in (
            ("steps", event.step),
            ("loss", event.loss),
            ("smoothed", event.smoothed_loss),
            ("step_seconds", self.seconds),
            ("steps_per_second", event.steps_per_second),
            ("tokens_per_second", event.tokens_per_second),
            ("ties", event.ties),
        ):
            self.columns[name].append(value)
        if self.memory is None:
            # A run without samples of its footprint.
            self._remember(event.active_bytes + event.cache_bytes)

    def _remember(self, count: int) -> None:
        self.columns["memory_seconds"].append(self.seconds)
        self.columns["memory_bytes"].append(count)

    def _say(self, time: float, mark: str, text: str) -> None:
        self.log.append(LogLine(time, mark, text))


def _evaluation_mark(event: events.Evaluated) -> str:
    return "★" if event.best and event.kind == "validation" else "●"


def _key(event: events.Evaluated) -> tuple[str, str, int]:
    return event.kind, event.split, event.step
