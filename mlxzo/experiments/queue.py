"""A queue of runs, one or several at a time, each in a worker process. Finished runs are skipped, the others go on.

Imports no MLX.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import events
from ..core.config import RunConfig, options
from ..core.errors import ConfigError, MlxzoError
from ..core.files import user_path
from ..core.formatting import format_seconds
from ..core.run_directory import RunDirectory
from ..runtime.supervisor import Supervisor
from .spec import problem_texts

_POLL_SECONDS = 0.25
# Options that decide the result of a run; they stay as they are in one that has finished.
_DECIDE_RESULTS = ("steps", "eval_every")

Emit = Callable[[RunDirectory, events.Event], None]
"""Receives the events of the runs as they happen, and the notes of the queue about them."""


@dataclass(frozen=True)
class Ended:
    """The end of one run; `seconds` is the time it took, None where it ended before the queue or elsewhere."""

    run: RunDirectory
    config: RunConfig
    outcome: events.Finished | events.Failed
    seconds: float | None

    @property
    def failed(self) -> events.Failed | None:
        return self.outcome if isinstance(self.outcome, events.Failed) else None


@dataclass
class _Job:
    """A run in progress: `stops` counts the requests to stop it, `eta_seconds` is the estimate of its last step."""

    run: RunDirectory
    config: RunConfig
    supervisor: Supervisor
    began: float
    stops: int = 0
    eta_seconds: float | None = None


class RunQueue:
    """Runs whose configurations carry their names. `run` belongs to one thread; `stop` is safe in any.

    Args:
        emit: receives the events.
        tick: called a few times a second.
        jobs: most runs at one time.
        admits: True if a run may start beside those in progress; not called where none is.
        changeable: options that may differ from those of an existing run: an unfinished one goes on with the new
            values, a finished one stays as it is (see `check`).
        allow_code: the user allows the reward code of the configurations to run.

    Attributes:
        ended: the runs that have ended, those that had finished before included.
        stopping: True once `stop` was called.
    """

    def __init__(
        self,
        configs: Iterable[RunConfig],
        emit: Emit,
        tick: Callable[[], None] = lambda: None,
        *,
        jobs: int = 1,
        admits: Callable[[RunConfig, Sequence[RunConfig]], bool] = lambda config, running: True,
        changeable: Collection[str] = (),
        allow_code: bool = False,
    ):
        self.configs = list(configs)
        self.ended: list[Ended] = []
        self._emit, self._tick = emit, tick
        self._jobs, self._admits, self._changeable = jobs, admits, frozenset(changeable)
        self._allow_code = allow_code
        self._waiting = list(self.configs)
        self._running: list[_Job] = []
        self._announced: set[str] = set()
        self._done: set[str | None] = set()
        self._durations = DurationEstimate(())
        self._coming: list[float | None] = []
        self._estimated_at: tuple[int, int] | None = None
        self._stops = 0
        self._began = 0.0

    @property
    def stopping(self) -> bool:
        return self._stops > 0

    def check(self) -> None:
        """Compares existing runs with the configurations; a run without work to keep may have had any.

        Raises:
            ConfigError: lists every option in which they differ.
        """
        _refuse([problem for config in self.configs for problem in self._problems(run_directory(config), config)])

    def _problems(self, run: RunDirectory, config: RunConfig) -> list[str]:
        if run.is_foreign:
            return [f"{run.id}: {run.path} is no run"]
        if not run.has_work:
            return []
        allowed = self._changeable
        if run.last_status == "finished":
            allowed = allowed.difference(_DECIDE_RESULTS)
        try:
            found = changes(run.config, config)
        except MlxzoError as error:
            return [f"{run.id}: {text}" for text in problem_texts(error)]
        return [f"{run.id}: {name}: {have}, not {want}" for name, (have, want) in found.items() if name not in allowed]

    def run(self) -> Iterator[Ended]:
        """Executes the runs and yields each when it has ended. An interrupted run resumes where it stopped.

        A failed run resumes as well, or begins anew where there is no work to keep. A run that another process executes
        waits until the others are done; if it fails there, it is not tried again.

        Raises:
            MlxzoError: a run directory cannot be made (full disk), or another process has begun a run of that name with
                other options meanwhile. Workers in progress go on alone.
        """
        self._began = time.time()
        self._done = {config.name for config in self.configs if run_directory(config).status == "finished"}
        while self._running or (self._waiting and not self.stopping):
            for ended in itertools.chain(self._begin(), self._relay()):
                self.ended.append(ended)
                yield ended
            self._tick()

    def stop(self) -> None:
        """Stops the runs in progress, as `Supervisor.stop` does, and starts no other. Safe in a signal handler."""
        self._stops += 1

    def position(self) -> str:
        """`run 3 of 12, all done in about 2 h 05 min`; of several at a time `2 of 12 done, 3 running, ...`."""
        if self._jobs == 1:
            text = f"run {min(len(self.ended) + 1, len(self.configs))} of {len(self.configs)}"
        else:
            text = f"{len(self.ended)} of {len(self.configs)} done, {len(self._running)} running"
        left = self.seconds_left()
        return text if left is None else f"{text}, all done in about {format_seconds(left)}"

    def seconds_left(self) -> float | None:
        """Seconds until all runs have ended; None where a duration is unknown."""
        state = (len(self.ended), len(self._waiting))
        if state != self._estimated_at:
            # Kept, since every step of maybe a thousand runs asks.
            self._estimated_at, durations = state, DurationEstimate(self.ended)
            self._durations = durations
            self._coming = [durations.seconds(config) for config in self._waiting if config.name not in self._done]
        now = [
            self._durations.seconds(job.config) if job.eta_seconds is None else job.eta_seconds for job in self._running
        ]
        known, coming = all_known(now), all_known(self._coming)
        return None if known is None or coming is None else makespan(known, coming, self._jobs)

    def _begin(self) -> Iterator[Ended]:
        """Starts runs while there is room; yields those that have ended already."""
        for config in list(self._waiting):
            if self.stopping or len(self._running) >= self._jobs:
                return
            if self._running and not self._admits(config, [job.config for job in self._running]):
                continue
            run = run_directory(config)
            # Without the lock at first, with which the run would be taken for running.
            before = None if run.worker_is_alive() else self._over(run)
            if before is None:
                with run.held(make=True) as lock:
                    if lock is None:
                        self._announce_waiting(run)
                        continue
                    _refuse(self._problems(run, config))
                    before = self._over(run)
                    if before is None:
                        self._start(run, config, lock)
            else:
                _refuse(self._problems(run, config))
            self._waiting.remove(config)
            if before is not None:
                yield Ended(run, config, before, None)

    def _announce_waiting(self, run: RunDirectory) -> None:
        """Notes once that a run is in another process, such as a worker that outlived the command that started it."""
        if run.id not in self._announced:
            self._announced.add(run.id)
            self._emit(run, events.Note(f"{run.id} is running already; waiting for it to end"))

    def _over(self, run: RunDirectory) -> events.Finished | events.Failed | None:
        """The outcome of a run that needs no more work: it has finished, or failed elsewhere since the queue began."""
        outcome, when = run.outcome or (None, 0.0)
        if run.last_status == "finished":
            return outcome
        elsewhere = when >= self._began and run.last_status != "interrupted"
        return outcome if elsewhere else None

    def _start(self, run: RunDirectory, config: RunConfig, lock: int) -> None:
        resume, changed = run.has_work, None
        if resume:
            found = changes(run.config, config)
            new = {name: want for name, (_, want) in found.items() if name in self._changeable}
            if new:
                changed = dataclasses.replace(run.config, **new)
        else:
            run.begin(config)
        supervisor = Supervisor(run, resume=resume, config=changed, allow_code=self._allow_code)
        job = _Job(run, config, supervisor, time.monotonic())
        job.supervisor.start(lock)
        self._running.append(job)
        self._emit(run, events.Note(f"{self.position()}: {run.id}"))

    def _relay(self) -> Iterator[Ended]:
        """Emits the events of the next moment; yields the runs that have ended."""
        if not self._running and self._waiting:
            # The rest is in other processes.
            time.sleep(_POLL_SECONDS)
        for job in list(self._running):
            while job.stops < self._stops:
                job.stops += 1
                job.supervisor.stop()
            for event in job.supervisor.poll(_POLL_SECONDS / len(self._running)):
                if isinstance(event, events.Step):
                    job.eta_seconds = event.eta_seconds
                self._emit(job.run, event)
            if (outcome := job.supervisor.outcome) is not None:
                self._running.remove(job)
                yield Ended(job.run, job.config, outcome, time.monotonic() - job.began)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(
            "runs with these names exist and have other options",
            "choose another name, or remove those runs with `mlxzo runs rm`",
            problems,
        )


def changes(run: RunConfig, wanted: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Options in which an existing run differs from the wanted one: the value of each in both.

    A value that `wanted` leaves open (auto) may have been resolved by the memory cap, which may also have made
    micro-batches smaller. The folder and the name of the run do not count.
    """
    found = {}
    for name in (field.name for field in options()):
        have, want = getattr(run, name), getattr(wanted, name)
        is_open = want in (None, "auto") or (name == "micro_batch" and wanted.memory_cap is not None)
        if have != want and not is_open and name not in ("out", "name"):
            found[name] = (have, want)
    return found


def run_directory(config: RunConfig) -> RunDirectory:
    """The directory of a run of this name, which may not exist yet."""
    return RunDirectory(user_path(config.out).absolute() / str(config.name))


class DurationEstimate:
    """Predicts the duration of runs from those that have ended."""

    def __init__(self, ended: Iterable[Ended]):
        timed = [(each.config, each.seconds) for each in ended if each.seconds is not None and each.failed is None]
        similar: dict[RunConfig, list[float]] = {}
        for config, seconds in timed:
            similar.setdefault(_without_identity(config), []).append(seconds)
        self._similar = {config: statistics.fmean(found) for config, found in similar.items()}
        self._mean = statistics.fmean(seconds for _, seconds in timed) if timed else None
        overheads = [seconds - config.max_seconds for config, seconds in timed if config.max_seconds is not None]
        self._overhead = max(0.0, statistics.fmean(overheads)) if overheads else 0.0

    def seconds(self, config: RunConfig) -> float | None:
        """The mean of the same run with other seeds; else its time limit and the overhead of others beyond theirs; else
        the mean of all runs. None where no run has ended."""
        if (similar := self._similar.get(_without_identity(config))) is not None:
            return similar
        return self._mean if config.max_seconds is None else config.max_seconds + self._overhead


def all_known(seconds: Sequence[float | None]) -> list[float] | None:
    """The same values; None where one is None."""
    known = [each for each in seconds if each is not None]
    return known if len(known) == len(seconds) else None


def makespan(now: Sequence[float], coming: Iterable[float], jobs: int) -> float:
    """Seconds until all runs have ended, if each begins as soon as one of `jobs` places is free.

    Args:
        now: seconds left of the runs in progress; `coming`: those of the runs to come, in order.
    """
    places = sorted([*now, *[0.0] * (jobs - len(now))])
    for seconds in coming:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)


def _without_identity(config: RunConfig) -> RunConfig:
    """The configuration without seed, name and folder."""
    return dataclasses.replace(config, seed=0, name=None, out=RunConfig.out)
