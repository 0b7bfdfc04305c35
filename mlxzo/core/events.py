"""Typed events of a run: each is one JSON object on a line, and everything that shows a run reads only these.

A line is {"event": "<name>", "time": <seconds since the epoch>, ...fields}. Unknown fields are ignored and unknown
events are skipped when reading, so an older program can watch a newer run.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .errors import MlxzoError


@dataclass(frozen=True)
class Event:
    """Base of all events; `time` is filled in by the writer."""

    name: ClassVar[str] = ""


@dataclass(frozen=True)
class Phase(Event):
    """The run enters a phase: `load`, `probe`, `baseline`, `train`, `evaluate`, `test`, `save`."""

    name: ClassVar[str] = "phase"
    phase: str
    detail: str = ""


@dataclass(frozen=True)
class Progress(Event):
    """A long wait that is not a training step: a download, a conversion, an evaluation."""

    name: ClassVar[str] = "progress"
    label: str
    done: float
    total: float | None
    unit: str


@dataclass(frozen=True)
class Loaded(Event):
    """Model and data are ready: what trains, how much of it, and what is minimised (the option `objective`)."""

    name: ClassVar[str] = "loaded"
    model: str
    source: str
    parameters: int
    trainable_parameters: int
    trainable_tensors: int
    weights_sha256: str
    task: str
    train_examples: int
    validation_examples: int
    test_examples: int
    active_bytes: int
    objective: str = "loss"


@dataclass(frozen=True)
class Step(Event):
    """One optimisation step.

    Attributes:
        step: from 1; `steps` is how many there will be, estimated where `max_seconds` ends the run.
        loss: of the batch, or what else the run minimises (see the option `objective`).
        directional_derivative: of several directions, their rms.
        padded_tokens: the padding counted too.
        ties: directions on both sides of which the batch gave the same value: they moved nothing.
        bytes_sent: to other ranks, where there are some.
    """

    name: ClassVar[str] = "step"
    step: int
    steps: int
    loss: float
    smoothed_loss: float
    lr: float
    directional_derivative: float | None
    seconds: float
    tokens: int
    steps_per_second: float
    tokens_per_second: float
    eta_seconds: float
    active_bytes: int
    peak_bytes: int
    cache_bytes: int
    padded_tokens: int = 0
    ties: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class RankStats(Event):
    """How the ranks of a run get on, a few times a minute; lists are by rank.

    Attributes:
        names: of the machines.
        shares: of the work that each gets, which add up to 1.
        busy_seconds, waiting_seconds: a step, lately: how long each computed, and then waited for the slowest.
        bytes_sent: what each rank has handed on to others so far.
    """

    name: ClassVar[str] = "ranks"
    names: list[str]
    shares: list[float]
    busy_seconds: list[float]
    waiting_seconds: list[float]
    bytes_sent: int


@dataclass(frozen=True)
class Memory(Event):
    """What memory the run takes, in bytes; most samples are only shown, and not kept in events.jsonl.

    Attributes:
        phase: the phase (see `Phase`) the run is in.
        footprint_bytes: what the system charges the worker for; `peak_footprint_bytes` is the most of it so far.
        active_bytes, cache_bytes, peak_bytes: MLX's arrays, the freed buffers that it keeps, and the most of its arrays
            so far.
        cap_bytes: the memory cap, from when the run is held to it; None: it has none, or was not yet fitted to it.
        available_bytes, swap_used_bytes: what the machine's programs could have now, and what of them lies in swap.
        pressure: macOS's memory pressure: 1 normal, 2 warning, 4 critical; None elsewhere.
    """

    name: ClassVar[str] = "memory"
    phase: str
    footprint_bytes: int
    peak_footprint_bytes: int
    active_bytes: int
    cache_bytes: int
    peak_bytes: int
    cap_bytes: int | None
    available_bytes: int
    swap_used_bytes: int
    pressure: int | None


@dataclass(frozen=True)
class Resumed(Event):
    """An interrupted run goes on, `step` steps done; what earlier events tell of later steps no longer counts."""

    name: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True)
class Paused(Event):
    """The run waits, `step` steps done, until it is told to continue or stop."""

    name: ClassVar[str] = "paused"
    step: int


@dataclass(frozen=True)
class Unpaused(Event):
    """The run goes on after a pause of `seconds`."""

    name: ClassVar[str] = "continued"
    step: int
    seconds: float


@dataclass(frozen=True)
class Evaluated(Event):
    """One evaluation. `kind` is `zero-shot`, `validation` or `test`; `majority` is the share of the largest class, and
    `more` holds further metrics of the same answers."""

    name: ClassVar[str] = "evaluated"
    kind: str
    split: str
    step: int
    metric: str
    value: float
    loss: float
    examples: int
    majority: float | None
    seconds: float
    best: bool
    more: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples(Event):
    """What the model answers to the first few examples of a split; comes just before the evaluation it belongs to.

    Attributes:
        items: each {"prompt": its end, "answer": the likeliest candidate, or what the model wrote, "right": a right
            one, or null where it is not known, "share": the answer's probability among the candidates, or null}.
    """

    name: ClassVar[str] = "samples"
    split: str
    items: list[dict[str, Any]]


@dataclass(frozen=True)
class Saved(Event):
    """A state was written; `path` is relative to the run directory."""

    name: ClassVar[str] = "saved"
    path: str
    step: int
    bytes: int


@dataclass(frozen=True)
class Note(Event):
    """Something a user should know that is no error."""

    name: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Failed(Event):
    """The run ended early; the fields are those of an MlxzoError, and `needed_bytes` is that of a DoesNotFit.

    mlxzo 0.1.0 wrote no `kind`; it is then made from the title.
    """

    name: ClassVar[str] = "failed"
    title: str
    message: str
    fix: str
    details: list[str]
    exit_code: int
    needed_bytes: int | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.title.lower().replace(" ", "-"))

    def error(self) -> MlxzoError:
        """The error of another process as an exception of this one."""
        error = MlxzoError(self.message, self.fix, self.details)
        error.kind, error.title, error.exit_code = self.kind, self.title, self.exit_code
        return error


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete; `result` is what result.json holds."""

    name: ClassVar[str] = "finished"
    result: dict[str, Any]


Emit = Callable[[Event], None]
"""Takes the events of a run as they happen."""


def ignore(event: Event) -> None:
    """Takes the events that nobody watches."""


# Keys of version 0.1.0, in events and results, and their names since.
_RENAMED = {"alike": "ties", "alike_share": "tie_share"}


def renamed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the keys that an older version wrote under their names of today."""
    return {_RENAMED.get(key, key): value for key, value in record.items()}


_KINDS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}


def to_json(event: Event, time: float) -> str:
    """One line of JSON, without the newline; a number that is not finite becomes null, which JSON can carry."""
    record = {"event": event.name, "time": time, **dataclasses.asdict(event)}
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(line: str) -> tuple[Event, float] | None:
    """The event on a line and its time, or None for an unknown event or a torn line."""
    try:
        return from_record(json.loads(line))
    except ValueError:
        return None


def from_record(record: Any) -> tuple[Event, float] | None:
    """The event of a line that was read as JSON, and its time, or None for what is no known event."""
    try:
        fields = renamed(dict(record))
        kind = _KINDS[fields.pop("event")]
        if kind is Finished:
            fields["result"] = renamed(fields["result"])
        time = float(fields.pop("time"))
        known = {f.name for f in dataclasses.fields(kind)}
        return kind(**{key: value for key, value in fields.items() if key in known}), time
    except (ValueError, KeyError, TypeError):
        return None


def read(lines: Iterable[str]) -> Iterator[tuple[Event, float]]:
    """The events of a stream of lines, unreadable ones skipped."""
    for line in lines:
        if (found := from_json(line)) is not None:
            yield found
