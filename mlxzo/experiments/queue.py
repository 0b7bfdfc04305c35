"""Runs one after the other, or several at a time, each in a worker of its own: what is done is skipped, what is not
goes on.

Nothing here imports MLX.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import events
from ..core.config import RunConfig, options
from ..core.errors import ConfigError, MlxzoError
from ..core.formatting import format_seconds
from ..core.run_directory import RunDirectory
from ..runtime.supervisor import Supervisor

_POLL_SECONDS = 0.25
# Changed in a run that has finished, these would make another result of it.
_DECIDE_RESULTS = ("steps", "eval_every")

Emit = Callable[[RunDirectory, events.Event], None]
"""Takes the events of the runs as they happen, and notes of the series' own about them."""


@dataclass(frozen=True)
class Ended:
    """How one run of a series ended; `seconds` is how long it took, None where it was done before or elsewhere."""

    run: RunDirectory
    config: RunConfig
    outcome: events.Finished | events.Failed
    seconds: float | None

    @property
    def failed(self) -> events.Failed | None:
        return self.outcome if isinstance(self.outcome, events.Failed) else None


@dataclass
class _Job:
    """A run that is going on: `stops` is how often it was asked to stop, `eta_seconds` what its last step promised."""

    run: RunDirectory
    config: RunConfig
    supervisor: Supervisor
    began: float
    stops: int = 0
    eta_seconds: float | None = None


class RunQueue:
    """Runs whose configurations carry their names. `run` is for one thread; `stop` may be called from anywhere.

    Args:
        emit: takes the events.
        tick: is called a few times a second.
        jobs: most runs at one time.
        admits: whether a run may be started beside these; not asked where none is going on.
        changeable: options that may differ from those of a run that exists: one that is not done goes on with the new
            values, and one that has finished stays as it is (see `check`).

    Attributes:
        ended: the runs that have ended, those done before included.
        stopping: `stop` was called.
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
    ):
        self.configs = list(configs)
        self.ended: list[Ended] = []
        self._emit, self._tick = emit, tick
        self._jobs, self._admits, self._changeable = jobs, admits, frozenset(changeable)
        self._waiting = list(self.configs)
        self._running: list[_Job] = []
        self._told: set[str] = set()
        self._done: set[str | None] = set()
        self._pace = DurationEstimate(())
        self._coming: list[float | None] = []
        self._known_by: tuple[int, int] | None = None
        self._stops = 0
        self._began = 0.0

    @property
    def stopping(self) -> bool:
        return self._stops > 0

    def check(self) -> None:
        """Makes sure that the runs that exist are those that are wanted; one that has done no work may be any.

        Raises:
            ConfigError: lists every option in which they are not.
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
            return [f"{run.id}: {text}" for text in error.details or [error.message]]
        return [f"{run.id}: {name}: {have}, not {want}" for name, (have, want) in found.items() if name not in allowed]

    def run(self) -> Iterator[Ended]:
        """Runs them, and yields each as it has ended. An unfinished run of an earlier time goes on where it stopped.

        One that failed before goes on as well, or begins anew where it had done no work. One that somebody else is
        running is left until the others are done; if it fails there, it is not tried once more.

        Raises:
            MlxzoError: a run directory cannot be made, as when the disk is full; or somebody else has begun a run of
                that name with other options meanwhile. What is going on then goes on alone.
        """
        self._began = time.time()
        self._done = {config.name for config in self.configs if run_directory(config).status == "finished"}
        while self._running or (self._waiting and not self.stopping):
            for ended in itertools.chain(self._begin(), self._relay()):
                self.ended.append(ended)
                yield ended
            self._tick()

    def stop(self) -> None:
        """Ends the runs in hand, as `Supervisor.stop` does, and starts no other. Safe in a signal handler."""
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
        """Seconds until all is done; None where nothing is known yet of how long one takes."""
        known_by = (len(self.ended), len(self._waiting))
        if known_by != self._known_by:
            # Asked for with every step, of a thousand runs maybe.
            self._known_by, self._pace = known_by, DurationEstimate(self.ended)
            self._coming = [self._pace.seconds(config) for config in self._waiting if config.name not in self._done]
        now = [self._pace.seconds(job.config) if job.eta_seconds is None else job.eta_seconds for job in self._running]
        return None if None in (*now, *self._coming) else together(now, self._coming, self._jobs)

    def _begin(self) -> Iterator[Ended]:
        """Starts runs for as long as there is room, and gives out those that turn out to have ended already."""
        for config in list(self._waiting):
            if self.stopping or len(self._running) >= self._jobs:
                return
            if self._running and not self._admits(config, [job.config for job in self._running]):
                continue
            run = run_directory(config)
            with run.held(make=True) as lock:
                if lock is None:
                    self._tell(run)
                    continue
                self._waiting.remove(config)
                _refuse(self._problems(run, config))
                before = self._over(run)
                if before is None:
                    self._start(run, config, lock)
            if before is not None:
                yield Ended(run, config, before, None)

    def _tell(self, run: RunDirectory) -> None:
        """Says once that a run is waited for, such as one whose worker outlived the command that started it."""
        if run.id not in self._told:
            self._told.add(run.id)
            self._emit(run, events.Note(f"{run.id} is being run already; waiting for it to end"))

    def _over(self, run: RunDirectory) -> events.Finished | events.Failed | None:
        """How a run ended that needs no more work: it is finished, or has failed elsewhere since this series began."""
        outcome, when = run.outcome or (None, 0.0)
        if run.last_status == "finished":
            return outcome
        elsewhere = when >= self._began and run.last_status != "interrupted"
        return outcome if elsewhere else None

    def _start(self, run: RunDirectory, config: RunConfig, lock: int) -> None:
        resume = run.has_work
        if resume:
            found = changes(run.config, config)
            new = {name: want for name, (_, want) in found.items() if name in self._changeable}
            if new:
                run.settle(dataclasses.replace(run.config, **new))
        else:
            run.begin(config)
        job = _Job(run, config, Supervisor(run, resume=resume), time.monotonic())
        job.supervisor.start(lock)
        self._running.append(job)
        self._emit(run, events.Note(f"{self.position()}: {run.id}"))

    def _relay(self) -> Iterator[Ended]:
        """Passes on what the runs tell, for a moment, and gives out those that have ended."""
        if not self._running and self._waiting:
            # All that is left is being run elsewhere.
            time.sleep(_POLL_SECONDS)
        for job in list(self._running):
            while job.stops < self._stops:
                job.stops += 1
                job.supervisor.stop()
            for event in job.supervisor.poll(_POLL_SECONDS / len(self._running)):
                if isinstance(event, events.Step):
                    job.eta_seconds = event.eta_seconds
                self._emit(job.run, event)
            if not job.supervisor.running:
                self._running.remove(job)
                yield Ended(job.run, job.config, job.supervisor.outcome, time.monotonic() - job.began)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(
            "there are runs of these names with other options",
            "choose another name, or remove those runs with `mlxzo runs rm`",
            problems,
        )


def changes(run: RunConfig, wanted: RunConfig) -> dict[str, tuple[Any, Any]]:
    """In which options a run that exists is not the one that is wanted: what each is, and what it was to be.

    What `wanted` leaves open (auto) may have been settled by a probe or by the memory cap, which may also have cut
    micro-batches smaller. Where the run lies does not count.
    """
    found = {}
    for name in (field.name for field in options()):
        have, want = getattr(run, name), getattr(wanted, name)
        settled = want in (None, "auto") or (name == "scope" and wanted.probe == "scope")
        settled = settled or (name == "micro_batch" and wanted.memory_cap is not None)
        if have != want and not settled and name not in ("out", "name"):
            found[name] = (have, want)
    return found


def run_directory(config: RunConfig) -> RunDirectory:
    """Where a run of this name is, or will be."""
    return RunDirectory(Path(config.out).expanduser().absolute() / str(config.name))


class DurationEstimate:
    """How long a run is going to take, by those that have ended."""

    def __init__(self, ended: Iterable[Ended]):
        timed = [item for item in ended if item.seconds is not None and item.failed is None]
        alike: dict[RunConfig, list[float]] = {}
        for item in timed:
            alike.setdefault(_kind(item.config), []).append(item.seconds)
        self._alike = {kind: statistics.fmean(found) for kind, found in alike.items()}
        self._mean = statistics.fmean(item.seconds for item in timed) if timed else None
        beside = [item.seconds - item.config.max_seconds for item in timed if item.config.max_seconds is not None]
        self._beside = max(0.0, statistics.fmean(beside)) if beside else 0.0

    def seconds(self, config: RunConfig) -> float | None:
        """As its like with another seed took, or its time limit and what others took beside theirs, or the mean of all;
        None where nothing is known."""
        if (alike := self._alike.get(_kind(config))) is not None:
            return alike
        return self._mean if config.max_seconds is None else config.max_seconds + self._beside


def together(now: Sequence[float], coming: Iterable[float], jobs: int) -> float:
    """Seconds until all runs are done, if each begins as soon as one of `jobs` places is free.

    Args:
        now: seconds left of the runs going on; `coming`: those of the runs to come, in order.
    """
    places = sorted([*now, *[0.0] * (jobs - len(now))])
    for seconds in coming:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)


def _kind(config: RunConfig) -> RunConfig:
    """What a run has in common with those that differ in seed, name and place only."""
    return dataclasses.replace(config, seed=0, name=None, out=RunConfig.out)
