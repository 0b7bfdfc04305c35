"""Runs one after the other, each in a worker of its own: what is done is skipped, what is not goes on.

Nothing here imports MLX.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import events
from .config import RunConfig, options
from .errors import ConfigError
from .formatting import format_seconds
from .runs import RunDirectory
from .supervisor import Supervisor

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Ended:
    """How one run of a series ended; `seconds` is how long it took, None where it was done before."""

    run: RunDirectory
    config: RunConfig
    outcome: events.Finished | events.Failed
    seconds: float | None

    @property
    def failed(self) -> events.Failed | None:
        return self.outcome if isinstance(self.outcome, events.Failed) else None


class Series:
    """Runs whose configurations carry their names. `run` is for one thread; `stop` may be called from anywhere.

    Args:
        emit: takes the events of every run, and notes of the series' own.
        tick: is called a few times a second while a run is going on.

    Attributes:
        ended: the runs that have ended, those done before included.
        stopping: `stop` was called.
    """

    def __init__(self, configs: Sequence[RunConfig], emit: events.Emit, tick: Callable[[], None] = lambda: None):
        self.configs = list(configs)
        self._tick = tick
        self.ended: list[Ended] = []
        self.stopping = False
        self._emit = emit
        self._supervisor: Supervisor | None = None

    def check(self) -> None:
        """Makes sure that the runs that exist are those that are wanted.

        Raises:
            ConfigError: lists every option in which they are not.
        """
        problems = []
        for config in self.configs:
            run = run_directory(config)
            if (run.path / "config.yaml").exists():
                problems += [f"{run.id}: {text}" for text in differences(run.config, config)]
        if problems:
            raise ConfigError(
                "there are runs of these names with other options",
                "choose another --name, or remove those runs",
                problems,
            )

    def run(self) -> Iterator[Ended]:
        """Runs them, and yields each as it has ended. An unfinished run of an earlier time goes on where it stopped.

        Raises:
            MlxzoError: a run directory cannot be made, as when the disk is full.
        """
        for config in self.configs:
            if self.stopping:
                return
            ended = self._one(config)
            if ended is None:
                return
            self.ended.append(ended)
            yield ended

    def stop(self) -> None:
        """Ends the run in hand, as `Supervisor.stop` does, and starts no other."""
        self.stopping = True
        if self._supervisor is not None:
            self._supervisor.stop()

    def position(self, eta_seconds: float | None = None) -> str:
        """`run 3 of 12, all done in about 2 h 05 min`; `eta_seconds` is that of the run in hand."""
        text = f"run {len(self.ended) + 1} of {len(self.configs)}"
        left = self.seconds_left(eta_seconds)
        return text if left is None else f"{text}, all done in about {format_seconds(left)}"

    def seconds_left(self, eta_seconds: float | None = None) -> float | None:
        """Seconds until all is done: `eta_seconds` of the run in hand, if there is one, and those of the runs to come.

        None where nothing is known yet of how long one takes.
        """
        begun = len(self.ended) + (eta_seconds is not None)
        expected = [self._expected_seconds(config) for config in self.configs[begun:] if not _is_finished(config)]
        if None in expected:
            return None
        return (eta_seconds or 0.0) + sum(expected)

    def _expected_seconds(self, config: RunConfig) -> float | None:
        """How long a run takes: as its like with another seed, or its time and what others took beside theirs."""
        timed = [item for item in self.ended if item.seconds is not None and item.failed is None]
        alike = [item.seconds for item in timed if not _differ(item.config, config)]
        if alike:
            return statistics.fmean(alike)
        if config.max_seconds is not None:
            extra = [item.seconds - item.config.max_seconds for item in timed if item.config.max_seconds is not None]
            return config.max_seconds + (max(0.0, statistics.fmean(extra)) if extra else 0.0)
        return statistics.fmean(item.seconds for item in timed) if timed else None

    def _one(self, config: RunConfig) -> Ended | None:
        """Runs one; None where the series was stopped before it began."""
        run = run_directory(config)
        self._wait_for(run)
        if self.stopping:
            return None
        finished = run.last_event(events.Finished)
        if isinstance(finished, events.Finished) and run.status == "finished":
            return Ended(run, config, finished, None)
        resume = (run.path / "config.yaml").exists()
        if run.path.exists() and not resume:
            # It was never begun.
            shutil.rmtree(run.path)
        self._emit(events.Note(f"{self.position()}: {run.id}"))
        began = time.monotonic()
        run = run if resume else RunDirectory.create(config)
        self._supervisor = Supervisor(run, resume=resume)
        self._supervisor.start()
        if self.stopping:
            # Asked for while there was no worker yet to ask.
            self._supervisor.stop()
        while self._supervisor.running:
            for event in self._supervisor.poll(_POLL_SECONDS):
                self._emit(event)
            self._tick()
        outcome, self._supervisor = self._supervisor.outcome, None
        return Ended(run, config, outcome, time.monotonic() - began)

    def _wait_for(self, run: RunDirectory) -> None:
        """Waits for a worker that somebody else started, such as one that outlived the command that started it."""
        if run.worker_is_alive():
            self._emit(events.Note(f"{run.id} is being run already; waiting for it to end"))
        while run.worker_is_alive() and not self.stopping:
            time.sleep(_POLL_SECONDS)
            self._tick()


def differences(run: RunConfig, wanted: RunConfig) -> list[str]:
    """In which options a run that exists is not the one that is wanted, as `option: 3, not 4`.

    What `wanted` leaves open (auto) may have been settled by a probe or by the memory cap, which may also have cut
    micro-batches smaller. Where the run lies does not count.
    """
    found = []
    for name in (field.name for field in options()):
        have, want = getattr(run, name), getattr(wanted, name)
        settled = want in (None, "auto") or (name == "scope" and wanted.probe == "scope")
        settled = settled or (name == "micro_batch" and wanted.memory_cap is not None)
        if have != want and not settled and name not in ("out", "name"):
            found.append(f"{name}: {have}, not {want}")
    return found


def run_directory(config: RunConfig) -> RunDirectory:
    """Where a run of this name is, or will be."""
    return RunDirectory(Path(config.out).expanduser().absolute() / str(config.name))


def _is_finished(config: RunConfig) -> bool:
    return run_directory(config).status == "finished"


def _differ(one: RunConfig, other: RunConfig) -> bool:
    """Whether two runs differ in more than seed, name and place."""
    apart = {"seed", "name", "out"}
    return any(value != getattr(other, key) for key, value in one.to_dict().items() if key not in apart)
