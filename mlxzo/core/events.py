"""Events of a run, typed. Each is a line of JSON; every display of a run reads nothing else.

A line is {"event": "<name>", "time": <seconds since the epoch>, ...fields}. Unknown fields are ignored and unknown
events are skipped when reading, so an older program can watch a newer run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .errors import MlxzoError
from .files import last_lines
from .formatting import json_text
from .run_migrations import error_kind, with_current_keys


@dataclass(frozen=True)
class Event:
    """Base of all events; `time` is filled in by the writer."""

    name: ClassVar[str] = ""


@dataclass(frozen=True)
class Phase(Event):
    """The run enters a phase: `fetch`, `load`, `baseline`, `cache`, `train`, `evaluate`, `test` or `save`."""

    name: ClassVar[str] = "phase"
    phase: str
    detail: str = ""


@dataclass(frozen=True)
class Progress(Event):
    """Progress of a download, a conversion, an evaluation; `total` is None where it is not known."""

    name: ClassVar[str] = "progress"
    label: str
    done: float
    total: float | None
    unit: str


@dataclass(frozen=True)
class Loaded(Event):
    """Model and data are ready; `objective` is the option of that name."""

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
        step: from 1; `steps` is their number in the end, estimated where `max_seconds` ends the run.
        loss: the value minimised on the batch (see the option `objective`).
        lr: learning rate; 0 for a method that has none.
        eta_seconds: until the run ends; None while the speed of its steps is not known.
        may_end_early: the run ends before its last step where the validation loss no longer falls.
        directional_derivative: the rms over the directions of the step; None for a method without directions.
        padded_tokens: `tokens` and the padding.
        ties: directions with the same loss on both sides, which gave no signal.
        bytes_sent: to other ranks.
        damping: RSGN's, for the next step; 0 for the other methods.
        example_passes: forward passes of one example each; 0 in runs of versions that did not count them.
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
    eta_seconds: float | None
    active_bytes: int
    peak_bytes: int
    cache_bytes: int
    padded_tokens: int = 0
    ties: int = 0
    bytes_sent: int = 0
    damping: float = 0.0
    may_end_early: bool = False
    example_passes: int = 0


@dataclass(frozen=True)
class Population(Event):
    """The population of a step of ES; precedes the event of the step.

    Attributes:
        step: from 1.
        rewards: mean reward of each member over the batch.
        eps: scale of the perturbation.
        changed: share of answers that differ from the most frequent one to the same prompt.
        answers: every few steps, each {"prompt": its end, "best": the answer of the member with the highest reward,
            "median": that of the member with the median}; else empty.
    """

    name: ClassVar[str] = "population"
    step: int
    rewards: list[float]
    eps: float
    changed: float
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        texts = [item[key] for item in self.answers for key in ("prompt", "best", "median")]
        if not self.rewards or not all(isinstance(text, str) for text in texts):
            raise ValueError("rewards, and prompt and two answers of each sample, are needed")


@dataclass(frozen=True)
class RankStats(Event):
    """The work of each rank of a run, a few times a minute; lists are by rank.

    Attributes:
        names: of the machines.
        shares: of the work; they add up to 1.
        busy_seconds, waiting_seconds: time per recent step spent computing, and waiting for the slowest rank.
        bytes_sent: by each rank to others, so far.
    """

    name: ClassVar[str] = "ranks"
    names: list[str]
    shares: list[float]
    busy_seconds: list[float]
    waiting_seconds: list[float]
    bytes_sent: int

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.busy_seconds) == len(self.waiting_seconds) > 0:
            raise ValueError("one value for each rank is needed")


@dataclass(frozen=True)
class Memory(Event):
    """A sample of the worker's memory, in bytes; most samples are shown only, and not kept in events.jsonl.

    Attributes:
        phase: the current phase (see `Phase`).
        footprint_bytes: memory that the system charges the worker for; `peak_footprint_bytes` is its peak so far.
        active_bytes, cache_bytes, peak_bytes: MLX's live arrays, its cache of freed buffers, and the peak of its live
            arrays so far.
        cap_bytes: the memory cap; None without one, and until the run has been fitted to it.
        available_bytes, swap_used_bytes: of the machine: memory available to programs, and swap in use.
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
    """An interrupted run continues after step `step`; earlier events of later steps no longer count."""

    name: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True)
class Paused(Event):
    """The run is paused after step `step`, until a request to continue or stop."""

    name: ClassVar[str] = "paused"
    step: int


@dataclass(frozen=True)
class Unpaused(Event):
    """The run continues after a pause of `seconds`."""

    name: ClassVar[str] = "continued"
    step: int
    seconds: float


@dataclass(frozen=True)
class Evaluated(Event):
    """One evaluation.

    Attributes:
        kind: `zero-shot`, `validation` or `test`.
        value: of the metric; `loss`: the mean over the examples. A value that is not finite is read back as None.
        majority: the share of the largest class; None without classes.
        seconds: the time that the evaluation took.
        best: the state is better than all before, and is kept.
        more: further metrics of the same answers, by name.
    """

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
    """The model's answers to the first few examples of a split; precedes the evaluation that it belongs to.

    Attributes:
        items: each {"prompt": its end, "answer": the likeliest candidate or the generated text, "right": a correct
            answer or null, "share": the answer's probability among the candidates or null}.
    """

    name: ClassVar[str] = "samples"
    split: str
    items: list[dict[str, Any]]

    def __post_init__(self) -> None:
        for item in self.items:
            texts, share = (item["prompt"], item["answer"], item["right"] or ""), item["share"]
            if not all(isinstance(text, str) for text in texts) or not (share is None or _is_number(share)):
                raise ValueError("prompt, answer, right answer and share of each are needed")


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written; `path` is relative to the run directory."""

    name: ClassVar[str] = "saved"
    path: str
    step: int
    bytes: int


@dataclass(frozen=True)
class Note(Event):
    """A remark to the user that is no error."""

    name: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Failed(Event):
    """The run ended early; the fields are those of an MlxzoError, and `needed_bytes` is that of a DoesNotFit.

    Without `kind`, which mlxzo 0.1.0 did not write, it follows from the title.
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
            object.__setattr__(self, "kind", error_kind(self.title))

    def error(self) -> MlxzoError:
        """The error as an exception of this process."""
        error = MlxzoError(self.message, self.fix, self.details)
        error.kind, error.title, error.exit_code = self.kind, self.title, self.exit_code
        return error


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete; `result` is the content of result.json."""

    name: ClassVar[str] = "finished"
    result: dict[str, Any]


AnEvent = TypeVar("AnEvent", bound=Event)
# Of a file, where the last event of a kind is looked for first.
_TAIL_BYTES = 1 << 16

Emit = Callable[[Event], None]
"""Receives the events of a run as they happen."""


def ignore(event: Event) -> None:
    """Discards an event: an `Emit` for a caller without a display."""


_KINDS: dict[str, type[Event]] = {kind.name: kind for kind in Event.__subclasses__()}
# Beyond these, sums and conversions to whole numbers would overflow in whatever shows a run.
_LARGEST_INT, _LARGEST_FLOAT, _LATEST = 2**63, 1e100, 1e11


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) < _LARGEST_FLOAT  # false for NaN too
    return isinstance(value, int) and abs(value) < _LARGEST_INT


# By the annotation of a field, whether it may have a value.
_SUITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and _is_number(value),
    "int | None": lambda value: value is None or (isinstance(value, int) and _is_number(value)),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "list[float]": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "list[dict[str, Any]]": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
    "dict[str, Any]": lambda value: isinstance(value, dict),
    "dict[str, float]": lambda value: isinstance(value, dict) and all(map(_SUITS["float | None"], value.values())),
}
# What training measures; durations and speeds are always numbers.
_MAY_BE_NULL = ("value", "loss", "smoothed_loss", "damping")


def _suits(field: dataclasses.Field) -> Callable[[Any], bool]:
    return _SUITS["float | None" if field.name in _MAY_BE_NULL else str(field.type)]


_FIELDS = {kind: {f.name: _suits(f) for f in dataclasses.fields(kind)} for kind in _KINDS.values()}


def to_json(event: Event, time: float) -> str:
    """One line of JSON, without the newline. A number that is not finite becomes null, since JSON has none."""
    record = {"event": event.name, "time": time, **dataclasses.asdict(event)}
    return json_text(record)


def from_json(line: str) -> tuple[Event, float] | None:
    """The event on a line and its time; None for an unknown event or a torn line."""
    try:
        return from_record(json.loads(line))
    except (ValueError, RecursionError):
        return None


def from_record(record: Any) -> tuple[Event, float] | None:
    """The event in a line parsed as JSON, and its time; None for an unknown event, or values of wrong types."""
    try:
        fields = with_current_keys(dict(record))
        kind = _KINDS[fields.pop("event")]
        if kind is Finished:
            fields["result"] = with_current_keys(fields["result"])
        time = float(fields.pop("time"))
        known = {key: value for key, value in fields.items() if key in _FIELDS[kind]}
        if not 0.0 <= time < _LATEST or not all(_FIELDS[kind][key](value) for key, value in known.items()):
            return None
        return kind(**known), time
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def read(lines: Iterable[str]) -> Iterator[tuple[Event, float]]:
    """The events of a stream of lines, unreadable ones skipped."""
    for line in lines:
        if (found := from_json(line)) is not None:
            yield found


def last_in(path: Path, *kinds: type[AnEvent]) -> tuple[AnEvent, float] | None:
    """The last event of one of these kinds in a file, and its time; None without one.

    Reads the end of the file first, so that a thousand runs list fast.
    """
    for length in (_TAIL_BYTES, None):
        try:
            lines = last_lines(path, length)
        except OSError:
            return None
        for line in reversed(lines):
            event, time = from_json(line) or (None, 0.0)
            if isinstance(event, kinds):
                return event, time
    return None
